"""Tests of the kernels: the interpreter against float64, and ahead-of-time compilation.

Each test_<operation>.py has a function `shipped(dtype, dim)` that launches it on meta tensors, as
the published settings do; ahead_of_time.py compiles what that launches.
"""

from pathlib import Path

_HERE = Path(__file__).parent
OPERATIONS = tuple(
    path.stem.removeprefix("test_")
    for path in sorted(_HERE.glob("test_*.py"))
    if "def shipped(" in path.read_text()
)
