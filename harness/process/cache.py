"""The folder of what can be made again: downloads, drawn data, models read from other formats."""

import os
from pathlib import Path


def folder() -> Path:
    """$EVICTBENCH_CACHE, or ~/.cache/evictbench."""
    return Path(os.environ.get("EVICTBENCH_CACHE") or "~/.cache/evictbench").expanduser()
