"""SIGINT, SIGTERM and SIGHUP end a program with one sentence and 128 + the signal's number.

Imports nothing that takes time, so that a stop is heard from the first line on. Must not know what
is stopped.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 5.0  # seconds after a stop until another one ends the program at once

_since: float | None = None  # when the stop was asked for; another one is then let pass
_number = 0
_inside = False  # whether somebody waits for Stopped
_first: list[Callable[[], object]] = []  # called before Stopped is raised


class Stopped(KeyboardInterrupt):
    """A signal asked to stop: what is open is closed on the way out, nothing else begins.

    A KeyboardInterrupt, so that libraries treat it as one.
    """

    def __init__(self, number: int) -> None:
        """Keep the number of the signal."""
        super().__init__(number)
        self.number = number


def code(error: KeyboardInterrupt) -> int:
    """The exit code of a stop, as a shell gives it: 130, 143 or 129."""
    return 128 + getattr(error, "number", signal.SIGINT)


def tell(error: KeyboardInterrupt) -> None:
    """Say on standard error that the work goes on from here; the terminal may be gone."""
    number = getattr(error, "number", signal.SIGINT)
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    with suppress(OSError):  # the terminal is gone
        print(f"stopped{by}: the same command goes on from here", file=sys.stderr, flush=True)


def listen(numbers: Sequence[int] = SIGNALS) -> None:
    """Take the signals from now on; while there is nothing to close a stop ends the program."""
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a job in the background
            signal.signal(number, _hear)


@contextmanager
def heard(numbers: Sequence[int] = SIGNALS) -> Iterator[None]:
    """Inside, a signal raises Stopped in the main thread; a program that listens is over then."""
    global _inside, _since
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        listen(numbers)
    except ValueError:  # not the main thread, which alone is sent signals
        yield
        return
    _since, _inside = None, True
    try:
        yield
    finally:
        _inside = False
        for number, handler in before.items():
            # What listens from the first line on ends with Python, which would take the default.
            signal.signal(number, signal.SIG_IGN if handler is _hear else handler)


@contextmanager
def first(action: Callable[[], object]) -> Iterator[None]:
    """Inside, a stop calls `action` before Stopped is raised."""
    _first.append(action)
    try:
        yield
    finally:
        _first.remove(action)


def check() -> None:
    """Raise Stopped once more where a library swallowed it."""
    if asked():
        raise Stopped(_number)


def asked() -> bool:
    """Whether a stop was asked for."""
    return _inside and _since is not None


def leave(number: int) -> NoReturn:
    """End the process at once, whatever is open."""
    os._exit(128 + number)


def _hear(number: int, frame: FrameType | None) -> None:
    global _since, _number
    if _since is not None:
        if time.monotonic() - _since > PATIENCE:
            leave(number)
        return
    _since, _number = time.monotonic(), number
    if not _inside:
        tell(Stopped(number))
        leave(number)
    for action in list(_first):
        action()
    raise Stopped(number)
