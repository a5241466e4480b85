"""A run's folder while this process writes tables and reports into it.

Must not know what is written.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError
from harness.records.atomic import sweep

SETTINGS = "config.yaml"  # a run writes it when its first answers are about to come


@contextmanager
def locked(folder: Path, waiting: Callable[[str], object]) -> Iterator[None]:
    """Hold the folder for this process, after another one that holds it.

    What a killed process left half written there goes.

    Args:
        folder: made where it is not there.
        waiting: told, once, that another process has it.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be written ({error.strerror}): free or correct that "
            "path, or choose another with run.dir or run.name."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting(f"waiting for another run that writes to {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        sweep(folder)
        yield
    finally:
        os.close(handle)
