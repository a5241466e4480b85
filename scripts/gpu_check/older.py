"""Names that transformers 5.17 lacks and the engine imports.

Importing this first makes up for them; `python -m scripts.gpu_check.older MODULE ...` runs a module
so.
"""

from __future__ import annotations

import runpy
import sys

from transformers import cache_utils

if not hasattr(cache_utils, "DummyLayer"):  # stands for a layer without a cache: none had one
    cache_utils.DummyLayer = type("DummyLayer", (), {})

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
