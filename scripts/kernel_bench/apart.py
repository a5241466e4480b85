"""Work in a process of its own, which may be lost without anything else being lost.

After some CUDA errors a process can use its device no more. It must not know what is computed.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

# Processes are forked from one that has imported these and has never touched a device.
_IMPORTED = ["scripts.kernel_bench.operations", "scripts.kernel_bench.decode"]
_START = 60.0  # seconds that importing them may take


class Lost(RuntimeError):
    """The process is gone; the text says why, in one sentence without a full stop."""


class Worker:
    """A process that makes an answering function once and answers until it is closed or lost.

    make: () -> answer(*asked), both picklable, as is all that is asked and answered. seconds: the
    longest wait for an answer. Lost, from the start and from every call, where none comes.
    """

    def __init__(self, make: Callable[[], Callable[..., Any]], seconds: float) -> None:
        self.seconds = seconds
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, theirs), daemon=True)
        self._process.start()
        theirs.close()  # else its end is never heard
        self._hear(max(seconds, _START))

    def __call__(self, *asked: Any) -> Any:
        """The answer."""
        try:
            self._pipe.send(asked)
        except OSError:
            raise self._gone() from None
        return self._hear(self.seconds)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def _hear(self, seconds: float) -> Any:
        if not wait([self._pipe, self._process.sentinel], seconds):
            self.close()
            raise Lost(f"no answer within {seconds:g} s")
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            raise self._gone() from None

    def _gone(self) -> Lost:
        self._process.join(self.seconds)
        code = self._process.exitcode
        self.close()
        return Lost(f"its process ended with {f'signal {-code}' if code and code < 0 else code}")


def _serve(make: Callable[[], Callable[..., Any]], pipe: Connection) -> None:
    answer = make()
    pipe.send(None)
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(*asked))
