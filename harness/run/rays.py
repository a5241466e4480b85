"""Ray for one run: a process a device answers rows, this one hands them out and alone writes.

Whole questions go to a worker. One that dies is replaced and its rows are answered again; a row
that ends two workers fails by name, and the others go on. Must not know the store.
"""

import os
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.process import scratch, stopping
from harness.process.console import say
from harness.process.python import environment
from harness.run.actor import Actor, Load, Refused, Task
from harness.scoring import quiet
from harness.scoring.rows import Answered, Row, refuse
from harness.settings.config import Config
from harness.settings.workers import count_of, share_of

IN_HAND = 2  # rows that a worker has: it makes the prompt of one while it answers the other
SHORT = "/tmp"  # where Ray's sockets lie: their paths may have 107 bytes
PATIENCE = 1.0  # seconds from one look at the workers to the next
CONNECT = 10.0  # seconds to reach a cluster
LONG = 120.0  # seconds of loading after which something is said
DEATHS = 2  # of one row, or in a row while loading

#: Told what computes the answers that come next, see `harness.records.provenance.origin`.
Computed = Callable[[Mapping[str, object]], object]


@contextmanager
def started(
    config: Config, folder: Path, context: Mapping[str, object], load: Load, computed: Computed
) -> Iterator["Pool"]:
    """Start Ray or join a cluster, and the workers; everything is ended at the end.

    Raises:
        UserError: Ray is not installed or not there, or lacks the devices.
    """
    ray = imported()
    kind = str(context["device"])
    join(ray, config)
    try:
        count = count_of(config.workers, _devices(ray, kind), kind)
        share = share_of(_devices(ray, "cpu"), count)
        task = Task(config, folder, dict(context), share, load)
        say(f"{count} workers are loading {config.model.name} through Ray {ray.__version__}")
        yield Pool(ray, task, count, computed)
    finally:
        ray.shutdown()


def imported() -> Any:
    """Ray; UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "workers= needs Ray, which is not installed: pip install 'evictbench[ray]', or leave "
            "workers out."
        ) from error
    return ray


def join(ray: Any, config: Config) -> None:
    """Connect to the cluster that is named, or start Ray on this machine."""
    os.environ.update(environment())  # workers import this package
    address = config.ray.address
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    silent = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is not None:
            _knock(address)
            ray.init(address=address, **silent)
        else:
            wanted = config.workers if isinstance(config.workers, int) else 1
            slots = max(os.cpu_count() or 1, wanted)
            place = {"include_dashboard": False, "_temp_dir": scratch.folder(SHORT)}
            ray.init(address="local", num_cpus=slots, **place, **silent)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        where = "on this machine" if address is None else f"at ray.address={address}"
        why = " ".join(str(error).split())[:300]
        raise UserError(f"Ray does not start {where}: {why}") from error
    finally:
        for number, handler in usual.items():  # Ray takes SIGTERM for itself
            signal.signal(number, handler)


def _knock(address: str) -> None:
    """OSError where nothing listens at host:port: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=CONNECT).close()


def _tell(text: str) -> None:
    """Say something beside the bar, while the output of lmms-eval goes to a file."""
    from tqdm import tqdm

    tqdm.write(text, quiet.terminal())


def _devices(ray: Any, kind: str) -> int:
    """GPUs of the cluster, or CPU slots."""
    return int(ray.cluster_resources().get("GPU" if kind == "cuda" else "CPU", 0))


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

    def __init__(self, ray: Any, task: Task, count: int, computed: Computed) -> None:
        """Start `count` workers; `computed` is told of each what it is when it has loaded."""
        self.ray, self.task, self.computed = ray, task, computed
        resources = {"num_gpus": 1} if task.kind == "cuda" else {"num_cpus": 1}
        self._actor = ray.remote(Actor).options(max_concurrency=IN_HAND, **resources)
        known = ray.exceptions
        self._death = (known.RayActorError, known.OutOfMemoryError, known.NodeDiedError)
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
                _tell("note: no worker has loaded its model yet; `ray status` tells what is free")

    def _ended(self) -> list[Any]:
        """What has come back, if anything has by now."""
        try:
            return self.ray.wait(list(self._flying), num_returns=1, timeout=PATIENCE)[0]
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
                reference = worker.handle.answer.remote(row.loaded())
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
        worker = Worker(number, self._actor.remote(self.task, number))
        self._flying[worker.handle.begin.remote()] = Flight(worker, None)
        return worker

    def _result(self, reference: Any, flight: Flight) -> Answered | None:
        """The answers; None where a model was loaded, the row failed or the worker has died."""
        try:
            found = self.ray.get(reference)
        except self._death:
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
                    "give fewer workers= if memory is short; worker-N.log in the run folder and "
                    "ray logs tell more."
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
