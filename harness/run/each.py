"""A command that does the same with each of some folders.

Must not know what is done.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import TypeVar

from harness.errors import UserError
from harness.process import stopping

T = TypeVar("T")


def each_folder(folders: Iterable[T], work: Callable[[T], None]) -> int:
    """Do it; 2 where it cannot be done with one of them, and as `harness.run.cli` when stopped."""
    failed = False
    try:
        with stopping.heard():
            for folder in folders:
                failed |= not _done(folder, work)
    except KeyboardInterrupt as error:
        stopping.tell(error)
        return stopping.code(error)
    return 2 if failed else 0


def _done(folder: T, work: Callable[[T], None]) -> bool:
    try:
        work(folder)
    except UserError as error:
        if os.environ.get("EVICTBENCH_TRACEBACK") == "1":
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr)
        return False
    return True
