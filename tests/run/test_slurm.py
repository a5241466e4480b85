"""The launcher `hydra/launcher=slurm` on a Slurm of one node; its settings and refusals without."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness.errors import UserError
from harness.records import shards
from harness.run import slurm
from harness.settings.config import CONF
from harness.settings.slurm import minutes, options
from tests.run.conftest import Program, assert_same_tables
from tests.run.test_shards import ROWS, rows_of

ROOT = CONF.parent
NODE = str(ROOT / "scripts" / "slurm_node.sh")
PARTS = ("-m", "hydra/launcher=slurm", "shard=0/3,1/3,2/3")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Slurm of one node.

    Its daemons are packages of the system, which pip cannot bring, and only root can start them.
    """
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None or os.geteuid():
        pytest.skip("needs root and slurmctld: apt-get install slurm-wlm munge")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm") / "node"
    said = subprocess.run([NODE, str(folder)], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    found = re.fullmatch(r'export SLURM_CONF=(\S+) PATH=(\S+):"\$PATH"\n', said.stdout)
    path = f"{found[2]}:{os.environ['PATH']}"
    yield {**os.environ, "PYTHONPATH": str(ROOT), "SLURM_CONF": found[1], "PATH": path}
    subprocess.run([NODE, "stop", str(folder)], check=True, timeout=60)
    assert not folder.exists()


@pytest.fixture
def start(node: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start the program with light jobs, or with the fake engine."""
    started: list[subprocess.Popen[str]] = []

    def begin(pause: str, *typed: str) -> "subprocess.Popen[str]":
        pipe, command = subprocess.PIPE, [*driver(pause), *typed]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, env=node, text=True, stdout=pipe, stderr=pipe)
        )
        return started[-1]

    yield begin
    for program in started:
        program.kill()
        program.wait()


def driver(pause: str) -> list[str]:
    return [sys.executable, str(ROOT / "tests" / "run" / "driver.py"), pause]


@pytest.fixture
def ask(node: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    def ask(*command: str) -> str:
        asked = subprocess.run(
            command, cwd=tmp_path, env=node, text=True, stdout=subprocess.PIPE, timeout=300
        )
        return asked.stdout

    return ask


def wait_for(what: Callable[[], object], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.2)


def job(place: Path, number: int) -> str:
    """The id of a job, as the log that Slurm writes has it."""
    (found,) = place.glob(f".multirun/*/slurm/*_{number - 1}_0_log.out")
    return found.name.removesuffix("_0_log.out")


def stored(run: Path, part: str) -> set[int]:
    stores = run.glob(f"shards/{part.replace('/', '-of-')}-*/{shards.ANSWERS}")
    return {row for store in stores for row in rows_of(store)}


@pytest.mark.slow
def test_an_array_gives_the_tables_of_one_process(
    start: Start, ask, overrides: list[str], in_one: Path, tmp_path: Path
):
    program = start("0", *overrides, *PARTS)
    out, err = program.communicate(timeout=300)
    assert program.returncode == 0, err
    for number in (1, 2, 3):
        assert re.search(
            rf"^job {number} of 3: Slurm job \d+_{number - 1}, log \.multi.*out$", out, re.M
        )
        assert f"job {number} of 3 has ended" in out
    assert out.splitlines()[-1] == f"report       {tmp_path}/run/report.html"
    assert_same_tables(in_one, tmp_path / "run")

    typed = " ".join(
        f"'{word}'" for word in (*driver("0"), *overrides, f"run.dir={tmp_path}/plain")
    )
    ask("sbatch", "--wait", "--array=0-2", "--gpus=1", "--requeue", "--wrap", f"{typed} shard=auto")
    assert_same_tables(in_one, tmp_path / "plain" / "run")


@pytest.mark.slow
def test_jobs_that_fail_or_die_on_slurm_are_named(start: Start, ask, tmp_path: Path):
    program = start("-", "-m", "hydra/launcher=slurm", f"run.dir={tmp_path}", "seed=3,9,8,4")
    wait_for((tmp_path / "began-8").exists)
    ask("scancel", "--signal=KILL", job(tmp_path, 3))
    _, err = program.communicate(timeout=300)
    assert program.returncode == 2
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 3
    assert said[0].startswith("error: job 1 of 4 (seed=3): seed=3 is odd: use an even one. (log ")
    for line, number, seed, state in ((said[1], 2, 9, "FAILED"), (said[2], 3, 8, "CANCELLED")):
        assert line.startswith(
            f"error: job {number} of 4 (seed={seed}): its process ended without a result (Slurm "
            f"says {state}, its log is .multirun/"
        )
        assert line.endswith(f"/job-{number}.log)")
        log = tmp_path / re.search(r"its log is (\S+)\)", line)[1]
        assert re.search("Killed|CANCELLED", log.read_text())
    assert (tmp_path / "ended-4").exists()


@pytest.mark.slow
def test_preempted_jobs_are_queued_again_and_go_on(
    start: Start, ask, overrides: list[str], in_one: Path, tmp_path: Path
):
    run = tmp_path / "run"
    program = start("3", *overrides, *PARTS)
    wait_for(lambda: any(len(stored(run, f"{part}/3")) > 1 for part in range(3)))
    part = next(part for part in range(3) if len(stored(run, f"{part}/3")) > 1)
    ask("scancel", "--signal=USR2", job(tmp_path, part + 1))  # as Slurm does before the limit
    (log,) = tmp_path.glob(f".multirun/*/job-{part + 1}.log")
    wait_for(lambda: "queued again by Slurm" in log.read_text())
    ask("sbatch", "--partition=urgent", "--exclusive", "--wrap", "sleep 10")  # takes their place
    out, err = program.communicate(timeout=300)
    assert program.returncode == 0, err
    assert "of 3 was queued again, and goes on from what it has stored" in out
    others = [tmp_path / found for found in re.findall(r"Slurm job .*, log (\S+)", out)]
    assert any("DUE TO PREEMPTION" in path.read_text() for path in others)
    heads = list(run.glob(f"shards/*/{shards.HEAD}"))
    assert len(heads) > 3  # a folder for each process
    answered = [row for head in heads for row in rows_of(head.with_name(shards.ANSWERS))]
    assert sorted(answered) == list(range(ROWS))  # nothing lost, nothing twice
    assert_same_tables(in_one, run)


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_too_often_fails(start: Start, ask, tmp_path: Path):
    limits = ("hydra.launcher.max_num_timeout=0", "hydra.launcher.time=5m")
    program = start("-", "-m", "hydra/launcher=slurm", *limits, f"run.dir={tmp_path}", "seed=8,2")
    wait_for((tmp_path / "began-8").exists)
    ask("scancel", "--signal=USR2", job(tmp_path, 1))
    _, err = program.communicate(timeout=300)
    assert program.returncode == 2
    assert "error: job 1 of 2 (seed=8): it ran out of time more often than max_num_timeout" in err


@pytest.mark.slow
def test_a_stop_cancels_the_jobs(start: Start, ask, tmp_path: Path):
    program = start("-", "-m", "hydra/launcher=slurm", f"run.dir={tmp_path}", "seed=8,2")
    wait_for((tmp_path / "began-8").exists)
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=120)
    assert program.returncode == 130
    assert err.splitlines()[-1] == "stopped: the same command goes on from here"
    wait_for(lambda: not ask("squeue", "--noheader"), 30)


@pytest.mark.slow
def test_what_sbatch_refuses_is_one_sentence(start: Start):
    typed = ("-m", "hydra/launcher=slurm", "hydra.launcher.partition=none", "seed=2,4")
    program = start("-", *typed)
    _, err = program.communicate(timeout=120)
    assert program.returncode == 2
    assert err.startswith("error: sbatch refused the jobs (invalid partition specified: none")
    assert err.count("\n") == 1


def test_a_submission_has_the_settings(
    call: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """A Slurm in name only, whose jobs die at once."""
    pytest.importorskip("submitit")
    listed = "7_0|CANCELLED|a|None\n7_1|OUT_OF_MEMORY|a|None"
    for name, said in (("sbatch", "Submitted batch job 7"), ("squeue", listed), ("srun", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "SETTLING", 0.0)
    monkeypatch.setattr(slurm, "PAUSE", 0.05)
    launcher = ("partition=a", "account=b", "gpus=a100:2", "mem=64G", "time=90m", "setup=[ulimit]")
    more = "hydra.launcher.additional_parameters.qos=high"
    typed = [f"hydra.launcher.{text}" for text in launcher]
    sweep = ("-m", "hydra/launcher=slurm", f"run.dir={tmp_path}", "run.name=run", "seed=1,2")
    assert call(*sweep, *typed, more) == 2
    err = capsys.readouterr().err
    assert "job 1 of 2 (seed=1): its process ended without a result (Slurm says CANCELLED" in err
    assert "job 2 of 2 (seed=2): its process ended without a result (Slurm says OUT_OF_MEM" in err
    (path,) = tmp_path.glob(".multirun/*/slurm/*_submission.sh")
    told = path.read_text()
    for line in ("partition=a", "account=b", "gpus-per-node=a100:2", "mem=64G", "time=90",
                 "qos=high", "requeue", "array=0-1%2", "signal=USR2@120", "cpus-per-task=4",
                 "job-name=evictbench"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in told
    assert "\nulimit\n" in told
    assert re.search(r"^srun .* --cpus-per-task=4 ", told, re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90m", 90), ("4h", 240), ("1d", 1440), (30, 30), ("4:00:00", 240), ("1-00:00:30", 1441)],
)
def test_a_limit_is_read(text: object, expected: int):
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("time=soon", "hydra.launcher.time=soon is no time"),
        ("time=0", "hydra.launcher.time=0 leaves no time"),
        ("cpus=0", "hydra.launcher.cpus=0 is not a count"),
        ("max_num_timeout=-1", "hydra.launcher.max_num_timeout=-1 is no count"),
        ("additional_parameters=a", "holds no options of sbatch"),
    ],
)
def test_a_setting_out_of_range_is_refused(typed: str, said: str):
    given = OmegaConf.load(CONF / "hydra" / "launcher" / "slurm.yaml")
    given.merge_with(OmegaConf.from_dotlist([typed]))
    del given["_target_"]
    with pytest.raises(UserError, match=re.escape(said)):
        options(given)


def test_what_is_missing_is_one_sentence(
    call: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
):
    assert call("hydra/launcher=slurm") == 2
    assert "hydra/launcher=slurm is for jobs of -m" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(slurm, "find_spec", lambda name: name)
    sweep = ("-m", "hydra/launcher=slurm", f"run.dir={tmp_path}", "seed=1,2")
    assert call(*sweep) == 2
    assert "submits with sbatch, which is not on PATH" in capsys.readouterr().err
    monkeypatch.setattr(slurm, "find_spec", lambda name: None)
    assert call(*sweep) == 2
    told = capsys.readouterr()
    assert told.err == "error: hydra/launcher=slurm needs submitit: pip install '.[launchers]'.\n"
    assert not list(tmp_path.iterdir())
