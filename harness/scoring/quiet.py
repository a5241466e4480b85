"""Keeps the chatter of libraries out of the terminal: prints, bars and loguru lines go to a file.

Must not know what runs inside.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

outside: list[TextIO] = []


@contextmanager
def into(log: Path) -> Iterator[None]:
    """Append standard output and error, and loguru's lines, to the file `log` meanwhile."""
    from loguru import logger

    outside.append(sys.stderr)
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        logger.remove()  # lmms-eval's own sink writes to the terminal
        logger.add(file, level="INFO")
        try:
            yield
        finally:
            logger.remove()  # all of them: importing lmms-eval puts its own back
            outside.pop()


def terminal() -> TextIO:
    """Standard error as it is outside of `into`, for what a person should see meanwhile."""
    return outside[0] if outside else sys.stderr
