"""The jobs of a sweep as an array of Slurm's: submitted by submitit, watched with squeue.

squeue and not sacct, since not every cluster keeps accounts. Knows Hydra and Slurm's commands; must
not know what a run does.
"""

import io
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

from harness.errors import UserError
from harness.process import stopping
from harness.process.console import say
from harness.run.jobs import OUT_OF_TIME, Failure, Program, died
from harness.run.watch import shown
from harness.settings.slurm import GROUP

#: States that a job does not leave any more.
OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
}
PASSING = ("None", "Priority", "Resources", "BeginTime")  # why a job waits, and need not be told
SETTLING = 15.0  # seconds in which a result that was written elsewhere is seen here
PAUSE, LONGEST_PAUSE = 1.0, 20.0


def refuse_unsuited() -> None:
    """UserError where jobs cannot be submitted."""
    if find_spec("submitit") is None or find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        raise UserError("hydra/launcher=slurm needs submitit: pip install '.[launchers]'.")
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher=slurm submits with sbatch, which is not on PATH: give the command on a "
            "login node of the cluster, or leave the launcher out."
        )


def launch(
    jobs: Mapping[int, Sequence[str]], options: Mapping[str, Any], given: Mapping[str, Any]
) -> list[JobReturn]:
    """Submit the jobs, tell how they fare and wait for them; a stop cancels them.

    Args:
        jobs: what each job is composed from, by number.
        options: see `options`.
        given: what Hydra sets a launcher up with.

    Raises:
        UserError: sbatch refused them.
    """
    program = given["task_function"]
    submitted = _submit(jobs, options, given)
    array = next(iter(submitted.values())).job_id.partition("_")[0]
    with stopping.first(lambda: _ask("scancel", array)):
        for number, job in submitted.items():
            log = shown(job.paths.stdout)
            say(f"job {number + 1} of {program.total}: Slurm job {job.job_id}, log {log}")
        say(f"squeue --jobs={array} shows them; a stop of this command cancels them")
        return Watch(program, submitted).wait()


def _submit(
    jobs: Mapping[int, Sequence[str]], options: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[int, Any]:
    import submitit  # late: only this launcher needs it
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

    work = SlurmLauncher()  # composes and runs a job on its node, and can be queued again
    work.setup(**given)
    # One folder: Slurm opens a job's log before submitit could make a folder that has its id.
    folder = given["task_function"].records / "slurm"
    chosen = dict(options)
    executor = submitit.SlurmExecutor(folder, max_num_timeout=chosen.pop("max_num_timeout"))
    executor.update_parameters(**chosen)
    state = Singleton.get_state()
    rows = [(list(o), "hydra.sweep.dir", n, f"job_id_for_{n}", state) for n, o in jobs.items()]
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it raises
            return dict(zip(jobs, executor.map_array(work, *zip(*rows, strict=True)), strict=True))
    except submitit.core.utils.FailedJobError as error:
        why = " ".join(re.sub(r"\w+: error: ", "", str(error)).split())
        raise UserError(
            f"sbatch refused the jobs ({why.rstrip('.')}): correct {GROUP}'s settings."
        ) from None


class Watch:
    """Jobs on Slurm until each has ended."""

    def __init__(self, program: Program, jobs: Mapping[int, Any]) -> None:
        """Watch submitit's `jobs`, by number."""
        self.program, self.jobs = program, jobs
        self.said: dict[int, str] = {}  # what was told of a job last
        self.state: dict[int, str] = {}
        self.gone: dict[int, float] = {}  # since when a job without a result is not there any more

    def wait(self) -> list[JobReturn]:
        """What each job returned; of one that died a failure."""
        ended: dict[int, JobReturn] = {}
        began = asked = time.monotonic()
        while len(ended) < len(self.jobs):
            time.sleep(PAUSE)
            now = time.monotonic()
            if now - asked >= min(LONGEST_PAUSE, 1 + (now - began) / 20):
                asked = now
                self._look(ended)
            for number in self.jobs.keys() - ended.keys():
                returned = self._returned(number)
                if returned is not None:
                    ended[number] = returned
                    self._tell(number, _how(returned))
        return [ended[number] for number in self.jobs]

    def _look(self, ended: Mapping[int, object]) -> None:
        """Ask Slurm about all jobs that have not ended."""
        listed = _queue()
        if listed is None:  # the controller does not answer: it is asked again
            return
        now = time.monotonic()
        for number in self.jobs.keys() - ended.keys():
            state, node, why = listed.get(self.jobs[number].job_id, ("", "", ""))
            self.state[number] = state
            if state in OVER or not state:
                self.gone.setdefault(number, now)
                continue
            self.gone.pop(number, None)
            if state == "RUNNING":
                self._tell(number, f"runs on {node}")
            elif state == "PENDING" and self.said.get(number, "").startswith("runs"):
                self._tell(number, "was queued again, and goes on from what it has stored")
            elif state == "PENDING" and why not in PASSING:
                self._tell(number, f"waits ({why})")

    def _returned(self, number: int) -> JobReturn | None:
        """What the job returned, a failure where it died, None while it goes on."""
        job = self.jobs[number]
        if _is_there(job.paths.result_pickle):
            from submitit.core.utils import pickle_load

            outcome, value = pickle_load(job.paths.result_pickle)
            if outcome == "success":
                assert isinstance(value, JobReturn)
                return value
            trace = str(value).strip().splitlines()
            return self._failed(number, _sentence(trace[-1] if trace else ""))
        since = self.gone.get(number)
        if since is None or time.monotonic() - since < SETTLING:
            return None
        state = self.state.get(number)
        said = f"Slurm says {state}" if state else "Slurm no longer knows it"
        return self._failed(number, died(f"{said}, its log is {shown(job.paths.stdout)}"))

    def _failed(self, number: int, sentence: str) -> JobReturn:
        log = self.jobs[number].paths.stdout
        failure = Failure(sentence, log=str(shown(log)) if log.is_file() else "")
        return JobReturn(status=JobStatus.COMPLETED, _return_value=failure)

    def _tell(self, number: int, what: str) -> None:
        if self.said.get(number) != what:
            self.said[number] = what
            say(f"job {number + 1} of {self.program.total} {what}")


def _how(returned: JobReturn) -> str:
    value = returned._return_value
    failed = returned.status != JobStatus.COMPLETED or isinstance(value, Failure)
    return "failed" if failed else "has ended"


def _sentence(last: str) -> str:
    """Of the last line of a trace."""
    if "timed-out too many times" in last:
        return OUT_OF_TIME
    return f"could not begin ({last.strip().rstrip('.')})"


def _queue() -> dict[str, tuple[str, str, str]] | None:
    """State, node and reason of this user's jobs by id; None where Slurm does not answer."""
    format_ = "--format=%F_%K|%T|%N|%r"
    out = _ask("squeue", "--me", "--noheader", "--array", "--states=all", format_)
    if out is None:
        return None
    found = {}
    for line in out.splitlines():
        name, state, node, why = line.strip().split("|", 3)
        found[name.removesuffix("_N/A")] = state, node, why
    return found


def _ask(*command: str) -> str | None:
    """What a command of Slurm's prints; None where it fails."""
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout if asked.returncode == 0 else None


def _is_there(path: Path) -> bool:
    """Whether a file is there; a change of its folder lets a network file system look anew."""
    with suppress(OSError):
        path.parent.chmod(path.parent.stat().st_mode)
    return path.exists()
