"""The folder of what can be made again: downloads, drawn data, models read from other formats."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from harness.process.console import say


def folder() -> Path:
    """$EVICTBENCH_CACHE, or ~/.cache/evictbench."""
    return Path(os.environ.get("EVICTBENCH_CACHE") or "~/.cache/evictbench").expanduser()


def made(folder: Path, what: str, write: Callable[[Path], None]) -> Path:
    """A folder of the cache, written where it is not there yet: under another name, then renamed.

    Args:
        folder: where it shall be; one process writes and others wait for it.
        what: is done, for the one line that is said before it begins.
        write: fills the folder that it is given, which does not exist yet.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            say(f"{what}, into {folder}")
            with TemporaryDirectory(prefix=".part-", dir=folder.parent) as scratch:
                write(Path(scratch) / "whole")
                (Path(scratch) / "whole").rename(folder)
    return folder
