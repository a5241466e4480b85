"""Workers in processes of this machine, for a CPU whose cores one process does not use.

Must not know the store.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock, RLock
from typing import Any

from tqdm import tqdm

from harness.process import scratch
from harness.process.console import say
from harness.run.actor import Actor, Load, Task
from harness.run.pool import IN_HAND, Computed, Pool
from harness.scoring.rows import Row
from harness.settings.config import Config
from harness.settings.workers import share_of

GRACE = 5.0  # seconds that a process has to end


class Died(Exception):
    """The process that was asked is gone."""


@dataclass(frozen=True)
class Broke:
    """A fault of the program in a worker, as it travels between processes."""

    trace: str


@contextmanager
def started(
    config: Config,
    folder: Path,
    context: Mapping[str, object],
    load: Load,
    computed: Computed,
    count: int,
    cores: int,
) -> Iterator[Pool]:
    """Start `count` workers, which share so many cores; everything is ended at the end."""
    say(f"{count} processes are loading {config.model.name}")
    task = Task(config, folder, dict(context), share_of(cores, count), load)
    launcher = Spawned()
    try:
        yield Pool(launcher, task, count, computed)
    finally:
        launcher.close()


@dataclass(eq=False)
class Process:
    """One worker: the process, the pipe to it, and what came back that nobody has taken yet."""

    process: BaseProcess
    pipe: Connection
    results: dict[int, Any] = field(default_factory=dict)
    asked: int = 0
    dead: bool = False

    def receive(self) -> None:
        """Take what came back by now, or note that nothing will."""
        try:
            while self.pipe.poll():
                number, found = self.pipe.recv()
                self.results[number] = found
        except (EOFError, OSError):
            self.dead = True

    def ask(self, name: str, *arguments: object) -> "Call":
        """Call a method of the actor."""
        self.asked += 1
        try:
            self.pipe.send((self.asked, name, arguments))
        except OSError:
            self.dead = True
        return Call(self, self.asked)


@dataclass(frozen=True)
class Call:
    """What was asked of a worker."""

    worker: Process
    number: int

    @property
    def ended(self) -> bool:
        """Whether there is a result, or none will come."""
        return self.number in self.worker.results or self.worker.dead


class Spawned:
    """Processes of their own, see `harness.run.pool.Launcher`."""

    deaths = (Died,)
    watch = "worker-N.log in the run folder tells what it waits for"
    logs = "worker-N.log in the run folder may"

    def __init__(self) -> None:
        """Nothing is started yet."""
        self._context = multiprocessing.get_context("spawn")  # torch's threads survive no fork
        self._started: list[Process] = []

    def start(self, task: Task, number: int) -> Process:
        """A process, which loads nothing yet."""
        here, there = self._context.Pipe()
        process = self._context.Process(target=serve, args=(there, task, number), daemon=True)
        process.start()
        there.close()  # so that the pipe ends with the process
        self._started.append(Process(process, here))
        return self._started[-1]

    def begin(self, worker: Process) -> Call:
        """Ask it to load its model."""
        return worker.ask("begin")

    def answer(self, worker: Process, row: Row) -> Call:
        """Ask it to answer a row."""
        return worker.ask("answer", row)

    def ended(self, asked: Sequence[Call], seconds: float) -> list[Call]:
        """What has come back, waiting so long at most for the first."""
        if not any(call.ended for call in asked):
            workers = {call.worker for call in asked}
            wait([worker.pipe for worker in workers], seconds)
            for worker in workers:
                worker.receive()
        return [call for call in asked if call.ended]

    def result(self, asked: Call) -> Any:
        """What came back; Died where nothing will.

        Raises:
            RuntimeError: a fault of the program, with where it happened.
        """
        if asked.number not in asked.worker.results:
            raise Died
        found = asked.worker.results.pop(asked.number)
        if isinstance(found, Broke):
            raise RuntimeError(f"a worker failed:\n{found.trace}")
        return found

    def close(self) -> None:
        """End all processes."""
        for one in self._started:
            one.pipe.close()
        for one in self._started:
            one.process.join(GRACE)
            if one.process.is_alive():  # it has not begun to listen yet
                one.process.kill()
                one.process.join()


def serve(pipe: Connection, task: Task, number: int) -> None:
    """What such a process does: answer calls until nobody is there to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all: the run ends its workers
    tqdm.set_lock(RLock())  # its own would be a semaphore, which is left behind at the end
    if task.folder.is_dir():
        _write_to(task.folder / f"worker-{number}.log")
    actor, sending = Actor(task, number), Lock()

    def do(call: int, name: str, arguments: Sequence[Any]) -> None:
        try:
            found = getattr(actor, name)(*arguments)
        except BaseException:
            found = Broke(traceback.format_exc())
        with sending:
            pipe.send((call, found))

    hands = ThreadPoolExecutor(IN_HAND)
    while True:
        try:
            hands.submit(do, *pipe.recv())
        except (EOFError, OSError):
            scratch.remove()
            os._exit(0)  # at once, whatever is being computed


def _write_to(log: Path) -> None:
    """Let all that this process writes go to a file."""
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
