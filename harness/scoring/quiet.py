"""Keeps the chatter of libraries out of the terminal: prints, bars and loguru lines go to a file.

Must not know what runs inside.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path


class _Log(io.TextIOWrapper):
    """A file that takes what it can: chatter which a full disk cannot hold stops nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("ab"), encoding="utf-8", errors="replace", line_buffering=True)

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def into(log: Path) -> Iterator[None]:
    """Append standard output and error, and loguru's lines, to the file `log` meanwhile."""
    from loguru import logger

    with _Log(log) as file, redirect_stdout(file), redirect_stderr(file):
        logger.remove()  # lmms-eval's own sink writes to the terminal
        logger.add(file, level="INFO")
        try:
            yield
        finally:
            logger.remove()  # all of them: importing lmms-eval puts its own back
