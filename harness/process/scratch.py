"""A folder for working copies that end with the process, however many jobs it does."""

import atexit
import shutil
from pathlib import Path
from tempfile import mkdtemp

_made: dict[str | None, str] = {}


def folder(place: str | None = None) -> str:
    """The folder, made when it is first asked for; by default where temporary files go."""
    if place not in _made or not Path(_made[place]).is_dir():
        if not _made:
            atexit.register(remove)
        _made[place] = mkdtemp(prefix="evictbench-", dir=place)
    return _made[place]


def remove() -> None:
    """Remove it; what uses a copy must be done with it."""
    for made in _made.values():
        shutil.rmtree(made, ignore_errors=True)
