"""A folder for working copies that end with the process, however many jobs it does."""

import atexit
import shutil
from pathlib import Path
from tempfile import mkdtemp

_made: list[str] = []


def folder() -> str:
    """The folder; made when it is first asked for."""
    if not _made or not Path(_made[-1]).is_dir():
        if not _made:
            atexit.register(remove)
        _made.append(mkdtemp(prefix="evictbench-"))
    return _made[-1]


def remove() -> None:
    """Remove it; what uses a copy must be done with it."""
    for made in _made:
        shutil.rmtree(made, ignore_errors=True)
