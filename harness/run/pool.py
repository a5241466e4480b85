"""Hands the rows of a run out to its workers, and alone writes what comes back.

Whole questions go to a worker. One that dies is replaced and its rows are answered again; a row
that ends two workers fails by name, and the others go on. Must not know the store, or how a worker
is started.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from harness.errors import UserError
from harness.process import stopping
from harness.run.actor import Refused, Task
from harness.scoring import quiet
from harness.scoring.rows import Answered, Row, refuse

IN_HAND = 2  # rows that a worker has: it makes the prompt of one while it answers the other
PATIENCE = 1.0  # seconds from one look at the workers to the next
LONG = 120.0  # seconds of loading after which something is said
DEATHS = 2  # of one row, or in a row while loading

#: Told of what computes the answers that come next, see `harness.records.provenance.origin`.
Computed = Callable[[Mapping[str, object]], object]


class Launcher(Protocol):
    """Starts workers in processes of their own and carries calls to them and results back.

    watch, logs: where a person finds out more, as parts of a sentence.
    """

    watch: str
    logs: str

    @property
    def deaths(self) -> tuple[type[BaseException], ...]:
        """What `result` raises where the process is gone."""

    def start(self, task: Task, number: int) -> Any:
        """A worker, see `harness.run.actor.Actor`; the other methods take what this returns."""

    def begin(self, worker: Any) -> Any:
        """Ask it to load its model; what the other methods take to tell what was asked."""

    def answer(self, worker: Any, row: Row) -> Any:
        """Ask it to answer a row; as `begin`."""

    def ended(self, asked: Sequence[Any], seconds: float) -> list[Any]:
        """What of it has come back, waiting so long at most for the first."""

    def result(self, asked: Any) -> Any:
        """What came back, or an error."""


def _tell(text: str) -> None:
    """Say something beside the bar, while the output of lmms-eval goes to a file."""
    from tqdm import tqdm

    tqdm.write(text, quiet.terminal())


@dataclass
class Worker:
    """One process: its handle, whether its model is loaded, and the rows that it has in hand."""

    number: int
    handle: Any
    loaded: bool = False
    rows: deque[Row] = field(default_factory=deque)  # of the question that it has begun


@dataclass(frozen=True)
class Flight:
    """What is asked of a worker at present; row None: to load the model."""

    worker: Worker
    row: Row | None


class Pool:
    """The workers of a run with several devices."""

    def __init__(self, launcher: Launcher, task: Task, count: int, computed: Computed) -> None:
        """Start `count` workers; `computed` is told of each what it is when it has loaded."""
        self.launcher, self.task, self.computed = launcher, task, computed
        self._flying: dict[Any, Flight] = {}
        self._origins: dict[int, Mapping[str, object]] = {}
        self._deaths: Counter[str] = Counter()
        self._lost = 0  # workers that died while loading, one after the other
        self._suspects: deque[Row] = deque()  # in hand when a worker died: each goes alone
        self._exhausted = False
        self._began, self._patient = time.monotonic(), True
        self.failed: list[Row] = []
        self._refused: list[str] = []  # what was said of rows that failed by themselves
        self.workers = [self._start(number) for number in range(count)]

    def run(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Answered]]:
        """Yields each row with its answers, as they come.

        Raises:
            UserError: a row cannot be answered, or a worker cannot load the model; at the end also
                for rows that ended two workers or failed by themselves.
        """
        self._exhausted = False  # known when a worker asks for a question and there is none
        questions = (deque(group) for _, group in groupby(rows, key=lambda row: row.turn))
        self._hand_out(questions)
        while self._flying:
            self._tell_waiting()
            for reference in self._ended():
                if (flight := self._flying.pop(reference, None)) is None:
                    continue  # in hand of a worker that died
                found = self._result(reference, flight)
                if found is not None and flight.row is not None:
                    self.computed(self._origins[flight.worker.number])
                    yield flight.row, found
            self._hand_out(questions)
            if self._is_done():
                break
        self._refuse_failed()
        refuse(self._refused)

    def _tell_waiting(self) -> None:
        """Say once where a model takes long to load, as it does while Ray has no device free."""
        if self._patient and time.monotonic() - self._began > LONG:
            self._patient = False
            if not any(worker.loaded for worker in self.workers):
                _tell(f"note: no worker has loaded its model yet; {self.launcher.watch}")

    def _ended(self) -> list[Any]:
        """What has come back, if anything has by now."""
        try:
            return self.launcher.ended(list(self._flying), PATIENCE)
        except KeyboardInterrupt:
            stopping.check()  # Ray makes a plain one of every signal
            raise

    def _is_done(self) -> bool:
        """Whether every row is answered or failed; workers that still load are not waited for."""
        left = self._suspects or any(worker.rows for worker in self.workers)
        return self._exhausted and not left and not any(f.row for f in self._flying.values())

    def _hand_out(self, questions: Iterator[deque[Row]]) -> None:
        for worker in self.workers:
            while worker.loaded and (row := self._next(worker, questions)) is not None:
                reference = self.launcher.answer(worker.handle, row.loaded())
                self._flying[reference] = Flight(worker, row)

    def _next(self, worker: Worker, questions: Iterator[deque[Row]]) -> Row | None:
        """What a worker answers next; None while it has enough in hand, or nothing is left."""
        hand = self._in_hand(worker)
        if self._suspects:
            return None if hand else self._suspects.popleft()
        if len(hand) >= IN_HAND or any(self._deaths[row.title] for row in hand):
            return None
        if not worker.rows:
            worker.rows = next(questions, deque())
            self._exhausted = not worker.rows
        return worker.rows.popleft() if worker.rows else None

    def _in_hand(self, worker: Worker) -> list[Row]:
        return [one.row for one in self._flying.values() if one.worker is worker and one.row]

    def _start(self, number: int) -> Worker:
        worker = Worker(number, self.launcher.start(self.task, number))
        self._flying[self.launcher.begin(worker.handle)] = Flight(worker, None)
        return worker

    def _result(self, reference: Any, flight: Flight) -> Answered | None:
        """The answers; None where a model was loaded, the row failed or the worker has died."""
        try:
            found = self.launcher.result(reference)
        except self.launcher.deaths:
            self._replace(flight)
            return None
        if isinstance(found, Refused):
            if not found.row:
                raise UserError(found.sentence)
            self._refused.append(found.sentence)
            return None
        if flight.row is None:
            flight.worker.loaded, self._lost = True, 0
            self._origins[flight.worker.number] = found
            return None
        return found

    def _replace(self, flight: Flight) -> None:
        """Start another worker; what the dead one had in hand is answered again, each row alone."""
        dead = flight.worker
        suspects = [row for row in (flight.row, *self._in_hand(dead)) if row is not None]
        self._flying = {r: one for r, one in self._flying.items() if one.worker is not dead}
        if suspects:
            named = ", ".join(row.title for row in suspects)
            _tell(f"note: worker {dead.number} died at {named}: another one takes its place")
        else:
            self._lost += 1
            if self._lost >= DEATHS:
                raise UserError(
                    f"{self._lost} workers died while they loaded {self.task.config.model.name}: "
                    f"give fewer workers= if memory is short; {self.launcher.logs} tell more."
                )
        for row in suspects:
            self._deaths[row.title] += 1
            again = self._deaths[row.title] < DEATHS
            (self._suspects if again else self.failed).append(row)
        left = dead.rows
        self.workers[dead.number] = self._start(dead.number)
        self.workers[dead.number].rows = left

    def _refuse_failed(self) -> None:
        """UserError that names the rows which no worker survives."""
        if self.failed:
            named = "; ".join(row.title for row in self.failed)
            raise UserError(
                f"{DEATHS} workers died at {named}: all other answers are stored. Give the command "
                "again on a larger device, or with a smaller engine.cells_per_batch."
            )
