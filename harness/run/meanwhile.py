"""What is done while answers come: a report from time to time, and a live run in wandb.

Knows the store and the settings; must not change an answer.
"""

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness.process.console import say
from harness.process.python import environment
from harness.records.store import Store
from harness.run.asked import Asked
from harness.settings.bounds import seconds
from harness.settings.config import Config
from harness.settings.grid import Cell

LOG = "report.log"
COMMAND = ("-m", "harness", "report")
GRACE = 10.0  # seconds that a report has to end

#: Told of each row that was answered: its task, the row, and the text of each cell by key.
Told = Callable[[Asked, int, Mapping[str, str]], None]


@contextmanager
def meanwhile(config: Config, folder: Path, store: Store, total: int) -> Iterator[Told]:
    """Yields what is told of every row; `total` are to come."""
    told: list[Told] = []
    with ExitStack() as open_:
        every = seconds("run.report_every", config.run.report_every)
        if every is not None:
            reporter = Reporter(folder, every)
            open_.callback(reporter.close)
            told.append(reporter)
        if config.wandb.mode == "online":
            told.append(open_.enter_context(live(config, folder, store, total)))

        def tell(one: Asked, row: int, texts: Mapping[str, str]) -> None:
            for each in told:
                each(one, row, texts)

        yield tell


class Reporter:
    """Reports a run's answers so far, in a process beside it: one at a time."""

    def __init__(self, folder: Path, every: float) -> None:
        """Report `folder` each `every` seconds, unless a finished report stands there."""
        from harness.report.reading import is_finished  # late: it brings pandas

        self.folder, self.every = folder, every
        self._last = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._off = is_finished(folder)
        if self._off:
            say(f"note: the finished report in {folder} stays until this run ends")

    def __call__(self, one: Asked, row: int, texts: Mapping[str, str]) -> None:
        """Begin a report where it is time for one."""
        busy = self._process is not None and self._process.poll() is None
        if self._off or busy or time.monotonic() - self._last < self.every:
            return
        self._last = time.monotonic()
        command = [sys.executable, *COMMAND, str(self.folder)]
        with (self.folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment()
            )

    def close(self) -> None:
        """End the report that is being written: the run writes its own."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def live(config: Config, folder: Path, store: Store, total: int) -> Iterator[Told]:
    """A run in wandb with rows, rate and the score so far of each cell."""
    from harness import tracking

    mode, project = config.wandb.mode, config.wandb.project
    with tracking.live(folder, mode, total, project=project, group=config.run.name) as log:
        scores: dict[str, Mean] = {}
        rows = 0

        def tell(one: Asked, row: int, texts: Mapping[str, str]) -> None:
            nonlocal rows
            if one.task.name not in scores:
                scores[one.task.name] = Mean(one, store)
            else:
                scores[one.task.name].add(row, texts)
            rows += 1
            log(rows, {name: value for mean in scores.values() for name, value in mean.items()})

        yield tell


class Mean:
    """The mean score of each cell of a task over the rows that it has answered so far."""

    def __init__(self, one: Asked, store: Store) -> None:
        """Begin with what the store holds."""
        self.one = one
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for key in one.cells:
            for row, answer in store.read(key).items():
                self.add(row, {key: answer["text"]})

    def add(self, row: int, texts: Mapping[str, str]) -> None:
        """Take in the answers of a row."""
        for key, text in texts.items():
            score = self.one.benchmark.score(row, text)
            if score is not None:
                self._sums[key][0] += score
                self._sums[key][1] += 1

    def items(self) -> Iterator[tuple[str, float]]:
        """The name of each cell, such as "mini/restkv/0.9", or "mini/restkv/0.9/context" of a run
        under several protocols or prefills, and its mean.
        """
        several = len(self.one.full) > 1
        for key, (total, count) in self._sums.items():
            cell = self.one.cells[key]
            under = f"/{cell.under}" if several else ""
            yield f"{self.one.task.name}/{_name(cell)}{under}", total / count


def _name(cell: Cell) -> str:
    amount: Any = cell.ratio if cell.budget is None else f"n={cell.budget}"
    return f"{cell.label}/{amount}" if cell.evicts else cell.label
