"""The program with workers that die: deaths.py <shape> <marker, or -> <overrides...>.

A worker that is asked about the shape kills its own process: once, if there is a file to mark
that, else every time.
"""

import os
import signal
import sys
import time
from pathlib import Path

from harness.process import stopping
from harness.run import cli, collect
from tests.run.fakes import FakeEngine


class Dying(FakeEngine):
    def __init__(self, shape: str, marker: str) -> None:
        super().__init__(pause=0.02)
        self.shape, self.marker = f"shape {shape}?", None if marker == "-" else Path(marker)

    def answer(self, messages, cells, *how):
        parts = messages[0]["content"]
        asked = self.shape in "".join(part.get("text", "") for part in parts)
        if asked and (self.marker is None or not self.marker.exists()):
            if self.marker is not None:
                self.marker.touch()
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(messages, cells, *how)


class Loading:
    """Makes such an engine, in whichever process."""

    def __init__(self, shape: str, marker: str) -> None:
        self.given = shape, marker

    def __call__(self, *loading: object) -> Dying:
        return Dying(*self.given)


if __name__ == "__main__":
    stopping.listen()
    shape, marker = sys.argv[1:3]
    del sys.argv[1:3]
    collect.load_engine = Loading(shape, marker)
    sys.exit(cli.main())
