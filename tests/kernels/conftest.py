"""Every test here runs Triton's kernels, natively or interpreted, on memory full of NaN.

Compiling all of them takes minutes and one processor. What came of it is on record, see
`ahead_of_time`; where that is of other kernels, or with --all, they are compiled anew: it begins
when tests begin, in a process of its own, and is looked at last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch

from methods import kernels
from tests.kernels import ahead_of_time

HERE = Path(__file__).parent
_LAST = "test_every_kernel_compiles_for_every_architecture"
_compiling = pytest.StashKey[tuple[subprocess.Popen[str], IO[str]]]()


@pytest.hookimpl(tryfirst=True)  # before what is marked slow is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.name == _LAST)
    for item in _repeats([item for item in items if item.path.parent == HERE]):
        item.add_marker(pytest.mark.slow)


def _repeats(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Tests of an operation at one more shape in a type of half the width: the first shape tells
    what each type does, and single precision takes every shape.
    """
    seen = set()
    for item in items:
        dtype = getattr(item, "callspec", None) and item.callspec.params.get("dtype")
        if dtype in (torch.float16, torch.bfloat16):
            kind = item.path, item.originalname, dtype
            if kind in seen:
                yield item
            seen.add(kind)


def pytest_collection_finish(session: pytest.Session) -> None:
    wanted = any(item.name == _LAST for item in session.items)
    anew = session.config.getoption("--all") or not _on_record()
    if wanted and anew and not session.config.option.collectonly:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        said = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed when the session ends
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.ahead_of_time", "--processes", "1"],
            cwd=Path(__file__).parents[2],
            env=environment,
            text=True,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        session.config.stash[_compiling] = process, said


def pytest_unconfigure(config: pytest.Config) -> None:
    if _compiling in config.stash:
        process, said = config.stash[_compiling]
        process.kill()
        said.close()


def _on_record() -> bool:
    return ahead_of_time.recorded()[0] == ahead_of_time.digest()


@pytest.fixture
def compiled(pytestconfig: pytest.Config) -> tuple[int, str]:
    """Exit status and output of the compilation of every kernel."""
    if _compiling not in pytestconfig.stash:
        said = ahead_of_time.RECORD.read_text()
        return int("WRONG" in said), said
    process, said = pytestconfig.stash[_compiling]
    status = process.wait()
    said.seek(0)
    return status, said.read()


@pytest.fixture(autouse=True)
def poisoned_triton() -> Iterator[None]:
    """torch.empty gives NaN, and a kernel is an error away from running as plain torch."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what is not initialised
    assert torch.empty(3).isnan().all()
    with kernels.using("triton"):
        yield
    torch.use_deterministic_algorithms(before)
