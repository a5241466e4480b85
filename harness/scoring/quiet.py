"""Keeps the chatter of libraries out of the terminal: prints, bars and log lines go to a file.

Must not know what runs inside.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

NOWHERE = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process
outside: list[TextIO] = []


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
    """Append standard output and error, and the lines of loguru and logging, to `log` meanwhile."""
    from loguru import logger

    outside.append(sys.stderr)
    with _Log(log) as file, redirect_stdout(file), redirect_stderr(file), _handlers(file):
        logger.remove()  # lmms-eval's own sink writes to the terminal
        logger.add(file, level="INFO")
        try:
            yield
        finally:
            logger.remove()  # all of them: importing lmms-eval puts its own back
            outside.pop()


@contextmanager
def _handlers(file: TextIO) -> Iterator[None]:
    """Let the handlers of `logging` write to `file`: each keeps the stream that it was made with.

    Those made meanwhile write nowhere afterwards, for `file` is closed then.
    """
    before = {handler: handler.stream for handler in _streaming()}
    for handler in before:
        handler.stream = file
    try:
        yield
    finally:
        for handler in _streaming():
            if handler.stream is file:
                handler.stream = before.get(handler) or NOWHERE


def _streaming() -> list[Any]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    held = {h: None for one in loggers for h in getattr(one, "handlers", ())}
    return [h for h in held if type(h) is logging.StreamHandler]


def terminal() -> TextIO:
    """Standard error as it is outside of `into`, for what a person should see meanwhile."""
    return outside[0] if outside else sys.stderr
