"""Which process computes which row: locks on single bytes of a file, gone with their process.

Must not know what a row is. POSIX record locks hold across the processes of a machine, and over
NFS where it runs a lock daemon.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPENING, USE, FIRST = 0, 1, 2  # the bytes before FIRST are about the store itself


class Claims:
    """The locks of one store. One object a process and store: closing any of them frees all."""

    def __init__(self, path: Path) -> None:
        """Open or create the lock file.

        Raises:
            OSError: it cannot be written.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Give back all locks."""
        os.close(self._file)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """While one process opens, makes or repairs the store, others wait here."""
        self._lock(OPENING)
        try:
            yield
        finally:
            self.free(OPENING)

    def alone(self) -> bool:
        """Whether no other process uses the store; call it inside `opening`."""
        return self._try(USE)

    def share(self) -> None:
        """Use the store beside others until `close`."""
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, USE)

    def take(self, key: str, row: int, wait: bool = False) -> int | None:
        """Claim a row; None where another process has it.

        Args:
            key, row: what is about to be computed.
            wait: until the other process gives it back or ends.

        Returns:
            What `free` takes.
        """
        digest = hashlib.blake2b(f"{key}:{row}".encode(), digest_size=7).digest()
        place = FIRST + int.from_bytes(digest)
        if wait:
            self._lock(place)
            return place
        return place if self._try(place) else None

    def free(self, place: int) -> None:
        """Give back one lock."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def _lock(self, place: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, place)

    def _try(self, place: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except BlockingIOError:
            return False
        return True


class Unshared:
    """The locks of a store that one process has for itself: none."""

    def close(self) -> None:
        """Nothing is held."""

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Nobody waits."""
        yield

    def alone(self) -> bool:
        """Nobody else is there."""
        return True

    def share(self) -> None:
        """There is nothing to share."""

    def take(self, key: str, row: int, wait: bool = False) -> int | None:
        """Every row is this process's own."""
        return 0

    def free(self, place: int) -> None:
        """Nothing is held."""
