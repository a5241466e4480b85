"""A launcher of Hydra's that is watched: where its jobs run, which failed, and which died.

Knows Hydra and the records that jobs in other processes keep; must not know what a run does.
"""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides

from harness.errors import UserError
from harness.process import stopping
from harness.process.console import say
from harness.process.python import environment
from harness.run.jobs import Failure, Program, died, run_folder

GRACE = 10.0  # seconds that the jobs have to end after a stop
PAUSE = 0.2


class Watched:
    """A launcher that says where jobs run, and does not lose one that failed or died."""

    def __init__(self, launcher: Any, sweeper: Any, **given: Any) -> None:
        """Watch a launcher that was set up; `given` is what a sweeper is set up with."""
        self.launcher, self.sweeper = launcher, sweeper
        self.loader = given["hydra_context"].config_loader
        self.config, self.program = given["config"], given["task_function"]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Launch a batch of jobs; those that had not begun when another one died are tried once
        more. Failures are kept in the program, so that no job ends the sweep.
        """
        overrides, first, program = job_overrides, initial_job_idx, self.program
        if not isinstance(program, Program):
            return list(self.launcher.launch(overrides, initial_job_idx=first))
        every = [job for batch in self.sweeper.overrides for job in batch]
        program.total = len(every)
        program.names |= names(overrides, first, every)
        jobs = dict(enumerate(overrides, first))
        if type(self.launcher).__name__ == "BasicLauncher":
            self.launcher.launch(overrides, initial_job_idx=first)
            return []
        os.environ.update(environment())
        root = Path(str(self.config.hydra.sweep.dir)).absolute()
        program.records = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        folders = {}
        for number, typed in jobs.items():
            cfg = self.loader.load_sweep_config(self.config, list(typed))
            folders[number] = run_folder(cfg, typed)
            program.say(number, folders[number], shown(program.log(number)))
        with stopping.first(self._stop):
            ended = self._run(jobs, again=True)
        program.failures += [one for one in ended.values() if one is not None]
        _tell_reports(folders, ended)
        return []

    def _run(self, jobs: Mapping[int, Sequence[str]], again: bool) -> dict[int, Failure | None]:
        """How each job ended."""
        ended: dict[int, Failure | None] = {}
        try:
            numbers = list(jobs)
            found = self.launcher.launch(list(jobs.values()), initial_job_idx=numbers[0])
            ended = dict(zip(numbers, map(_failure, found), strict=True))
        except UserError:
            raise
        except Exception as error:  # each launcher has its own for a process that died
            stopping.check()
            self._wait(jobs)
            begun = {number: self._record(number) for number in jobs}
            for number, record in begun.items():
                if record:
                    ended[number] = self._ended(number, record)
            left = {number: jobs[number] for number in jobs if number not in ended}
            for part in _runs(left) if again and ended else ():
                ended |= self._run({number: left[number] for number in part}, again=False)
            why = f"could not be launched ({type(error).__name__}: {_line(error)})"
            for number in left.keys() - ended.keys():
                ended[number] = self._named(number, Failure(why))
        return {n: self._named(n, one) if one else None for n, one in ended.items()}

    def _ended(self, number: int, record: Mapping[str, Any]) -> Failure | None:
        if "ended" not in record:
            return Failure(died())
        return Failure(**record["ended"]) if record["ended"] else None

    def _named(self, number: int, failure: Failure) -> Failure:
        log = self.program.log(number)
        return replace(
            failure,
            job=self.program.title(number),
            log=str(shown(log)) if log.is_file() else failure.log,
        )

    def _record(self, number: int) -> dict[str, Any]:
        """What a job says of itself; empty where it never began."""
        try:
            found = json.loads(self.program.log(number).with_suffix(".json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _wait(self, jobs: Mapping[int, Sequence[str]], limit: float = float("inf")) -> None:
        """Until no job of these runs on this machine any more."""
        began = time.monotonic()
        while time.monotonic() - began < limit and any(
            "ended" not in record and _alive(record) for record in map(self._record, jobs)
        ):
            time.sleep(PAUSE)

    def _stop(self) -> None:
        """Ask the jobs of this machine to stop, and let them close what is open."""
        import psutil

        below = psutil.Process().children(recursive=True)
        for process in below:
            with suppress(psutil.Error):
                process.terminate()
        mine = [p for p in below if "resource_tracker" not in " ".join(_command(p))]
        psutil.wait_procs(mine, timeout=GRACE)


def names(
    overrides: Sequence[Sequence[str]], first: int, every: Sequence[Sequence[str]]
) -> dict[int, str]:
    """What tells each job from the others: the settings that not all share."""
    shared = set.intersection(*map(set, every)) if len(every) > 1 else set()
    return {
        number: " ".join(o for o in filter_overrides(typed) if o not in shared) or "no settings"
        for number, typed in enumerate(overrides, first)
    }


def _tell_reports(folders: Mapping[int, Path], ended: Mapping[int, Failure | None]) -> None:
    """Say where the reports of jobs elsewhere are; a folder that is not seen from here has none."""
    for folder in dict.fromkeys(folders.values()):
        if any(ended.get(number) for number in folders if folders[number] == folder):
            continue  # the error says what is to be done
        if (folder / "report.html").is_file():
            say(f"report       {folder}/report.html")
        elif (folder / "shards").is_dir():
            say(f"note: evictbench merge {folder} says what is missing of its parts")


def _failure(returned: JobReturn) -> Failure | None:
    if returned.status == JobStatus.COMPLETED:
        value = returned.return_value
        return value if isinstance(value, Failure) else None
    return Failure(f"could not begin ({_line(returned._return_value)})")


def _runs(numbers: Mapping[int, object]) -> list[list[int]]:
    """The numbers in runs without a gap: a launcher numbers its jobs from the first on."""
    keyed = groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    return [[number for _, number in run] for _, run in keyed]


def _alive(record: Mapping[str, Any]) -> bool:
    import psutil

    if record.get("host") != platform.node():
        return False
    try:
        return bool(psutil.Process(record["pid"]).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _command(process: Any) -> list[str]:
    import psutil

    try:
        return list(process.cmdline())
    except psutil.Error:  # it has ended
        return []


def _line(error: BaseException) -> str:
    """The first line of an error."""
    return next(iter(str(error).splitlines()), "").rstrip(".:")


def shown(path: Path) -> Path:
    """The path as it is typed from here, where that is shorter."""
    with suppress(ValueError):
        return path.relative_to(Path.cwd())
    return path
