"""A job of a command, in whichever process a launcher of Hydra's runs it.

It returns its failure as a value: an exception would end a sweep before its other jobs. Away from
the process that reads the command it writes a log and a record of itself, so that one that was
killed is known too. Knows Hydra; must not know what a run does.
"""

import json
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.errors import UserError
from harness.process import scratch, stopping
from harness.process.console import say
from harness.records import places
from harness.settings import naming
from harness.settings.checks import check_typed
from harness.settings.config import Config, as_config, register
from harness.settings.wording import sentence

LOG = "libraries.log"
REQUEUED = -1  # with which submitit leaves a process whose job it has queued again
OUT_OF_TIME = (
    "it ran out of time more often than max_num_timeout lets it be queued again: what it had "
    "answered is kept, give the same command again"
)

Work = Callable[[Config], object]


def run_sweep(config: Config) -> None:
    """Do what a run does."""
    if config.shard is None:
        from harness.run.sweep import run  # late: settings are checked before anything heavy loads
    else:
        from harness.run.shard import run
    run(config)


@dataclass(frozen=True)
class Failure:
    """Why a job failed, in a sentence; `code` is 1 for a fault of the program, else 2."""

    sentence: str
    code: int = 2
    job: str = ""
    log: str = ""

    def __str__(self) -> str:
        """The sentence, with the job and its log where there are several."""
        log = f" (log {self.log})" if self.log else ""
        return f"{self.job}: {self.sentence}{log}" if self.job else self.sentence


@dataclass
class Program:
    """What Hydra calls for each job. It travels into the process where the job runs.

    home: the process that reads the command. failures: of the jobs that ran in it or were watched
    from it. names: what tells a job from the others, by number from 0; empty outside a multirun.
    records: folder of the logs and records of jobs elsewhere. work: what is done with the settings
    of a job.
    """

    home: tuple[str, int] = field(default_factory=lambda: (platform.node(), os.getpid()))
    failures: list[Failure] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    total: int = 1
    records: Path | None = None
    began: bool = False
    work: Work = run_sweep

    def __call__(self, cfg: DictConfig) -> Failure | None:
        """Run one job."""
        self.began = True
        if not self.names:
            failure = attempt(cfg, self.work)
        elif (platform.node(), os.getpid()) == self.home:
            failure = self._here(cfg)
        else:
            return self._elsewhere(cfg)
        self.failures += [failure] if failure else []
        return failure

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process, where Hydra does not know the settings yet."""
        register()
        self.__dict__.update(state)

    def title(self, number: int) -> str:
        """How a job is called, such as "job 2 of 4 (seed=1)"."""
        return f"job {number + 1} of {self.total} ({self.names[number]})"

    def log(self, number: int) -> Path:
        """Where a job in another process writes."""
        assert self.records is not None
        return self.records / f"job-{number + 1}.log"

    def say(self, number: int, folder: Path, log: Path) -> None:
        """Tell the person at the terminal where a job runs."""
        say(f"job {number + 1} of {self.total}: {self.names[number]} -> {folder}, log {log}")

    def _here(self, cfg: DictConfig) -> Failure | None:
        number = HydraConfig.get().job.num
        folder = run_folder(cfg, HydraConfig.get().overrides.task)
        self.say(number, folder, folder / LOG)
        failure = attempt(cfg, self.work)
        if failure is None:
            return None
        others = ", the others go on" if self.total > 1 else ""
        say(f"{self.title(number)} failed{others}")
        log = str(folder / LOG) if (folder / LOG).is_file() else ""
        return replace(failure, job=self.title(number), log=log)

    def _elsewhere(self, cfg: DictConfig) -> Failure | None:
        number = HydraConfig.get().job.num
        record = self.log(number).with_suffix(".json")
        record.parent.mkdir(parents=True, exist_ok=True)
        process = {"host": platform.node(), "pid": os.getpid()}
        with written_to(self.log(number)):
            _write(record, process)
            try:
                with stopping.heard(_signals()):
                    failure = attempt(cfg, self.work)
            except KeyboardInterrupt as error:
                stopping.tell(error)
                scratch.remove()
                stopping.leave(stopping.code(error) - 128)  # a worker would take up another job
            except SystemExit as error:
                if error.code == REQUEUED:
                    print("queued again by Slurm, to go on from here", file=sys.stderr)
                raise
            finally:
                scratch.remove()
            if failure is not None:
                failure = replace(failure, job=self.title(number), log=str(self.log(number)))
                print(f"error: {failure.sentence}", file=sys.stderr)
            _write(record, {**process, "ended": failure and asdict(failure)})
        return failure


def died(why: str = "killed, out of memory or out of time") -> str:
    """The sentence on a job whose process is gone."""
    return (
        f"its process ended without a result ({why}): what it had answered is kept, give the same "
        "command again"
    )


def attempt(cfg: DictConfig, work: Work) -> Failure | None:
    """Run a job's settings; what goes wrong comes back in a sentence."""
    try:
        typed = HydraConfig.get().overrides.task
        cfg = naming.with_own_name(cfg, typed)
        config = as_config(cfg)
        check_typed(typed)
        config.run.name = config.run.name or naming.default_name(cfg, typed)
        with places.speaking(Path(config.run.dir) / config.run.name):
            work(config)
    except (UserError, OmegaConfBaseException) as error:
        if os.environ.get("EVICTBENCH_TRACEBACK") == "1":
            traceback.print_exception(error)
        return Failure(sentence(error))
    except Exception as error:
        stopping.check()  # a library made another error of the stop
        if type(error).__module__.startswith("submitit."):  # raised where the signal was heard
            return Failure(OUT_OF_TIME)
        traceback.print_exception(error)
        return Failure(f"a fault of evictbench, {type(error).__name__}: {error}", 1)
    return None


def run_folder(cfg: DictConfig, typed: Sequence[str]) -> Path:
    """The run folder of a job's settings, which were composed from what was typed."""
    try:
        named = naming.with_own_name(cfg, typed)
        return Path(cfg.run.dir) / (cfg.run.name or naming.default_name(named, typed))
    except (OmegaConfBaseException, HydraException):  # the job itself says what is wrong
        return Path("?")


@contextmanager
def written_to(log: Path) -> Iterator[None]:
    """Append what this process writes to a file, its libraries' own output included."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(1), os.dup(2)]
    old = sys.stdout, sys.stderr
    with log.open("a", encoding="utf-8", buffering=1, errors="replace") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        try:
            yield
        finally:
            sys.stdout, sys.stderr = old
            for number, handle in enumerate(kept, 1):
                os.dup2(handle, number)
                os.close(handle)


def _signals() -> Sequence[int]:
    """On Slurm submitit lets SIGTERM pass, since another signal makes it queue the job again."""
    slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    return (signal.SIGINT,) if slurm else stopping.SIGNALS


def _write(record: Path, what: Mapping[str, Any]) -> None:
    part = record.with_suffix(".part")
    part.write_text(json.dumps(what))
    part.replace(record)
