"""Keeps the chatter of libraries out of the terminal: prints, bars and loguru lines go to a file.

Must not know what runs inside.
"""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path


@contextmanager
def into(log: Path) -> Iterator[None]:
    """Append standard output and error, and loguru's lines, to the file `log` meanwhile."""
    from loguru import logger

    with (
        log.open("a", encoding="utf-8", errors="backslashreplace") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        logger.remove()  # lmms-eval's own sink writes to the terminal
        logger.add(file, level="INFO")
        try:
            yield
        finally:
            logger.remove()  # all of them: importing lmms-eval puts its own back
