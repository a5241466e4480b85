"""A program whose jobs are light, in whichever process a launcher runs them."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.process import scratch
from harness.run import collect, sweep
from harness.run.jobs import Program
from harness.settings.config import Config

SLEEPER, DIER = 8, 9  # seeds


@dataclass
class FakeProgram(Program):
    """pause: seconds a row of the fake engine; None: jobs that only take note of themselves."""

    pause: float | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        install(self.pause)


def install(pause: float | None) -> None:
    if pause is None:
        sweep.run = take_note
    else:
        from tests.run.fakes import FakeEngine  # late: it takes a second

        collect.load_engine = lambda *loading: FakeEngine(pause)


def take_note(config: Config) -> None:
    """Fail, die, wait or end by the seed."""
    place = Path(config.run.dir)
    if config.seed == 3:
        raise UserError("seed=3 is odd: use an even one.")
    if config.seed == 5:
        raise ValueError("five")
    Path(scratch.folder(), "copy").write_text("")
    (place / f"began-{config.seed}").write_text(str(os.getpid()))
    if config.seed == DIER:
        _wait_for_the_first()  # joblib ends the jobs beside one that dies
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(600 if config.seed == SLEEPER else 0):
        time.sleep(0.1)
    (place / f"ended-{config.seed}").write_text("")


def _wait_for_the_first() -> None:
    for _ in range(600):
        if any('"ended"' in path.read_text() for path in Path(".multirun").glob("*/job-1.json")):
            return
        time.sleep(0.05)
