"""Jobs of a multirun under the launchers: one that fails or dies is named, the others go on."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.settings.config import CONF

ROOT = CONF.parent
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
}
MODULES = {"joblib": "hydra_plugins.hydra_joblib_launcher", "submitit": "submitit"}
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start the program with light jobs in a folder of the test's own."""
    (tmp_path / "temporary").mkdir()
    for name in ("harness", "methods"):  # the user's own packages
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not evictbench')")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path / "temporary"),
        "OMP_NUM_THREADS": "1",
    }

    def begin(launcher: str, *typed: str) -> "subprocess.Popen[str]":
        if launcher in MODULES:
            pytest.importorskip(MODULES[launcher])
        command = [sys.executable, str(ROOT / "tests" / "run" / "driver.py"), "-"]
        command += [f"run.dir={tmp_path}", *LAUNCHERS[launcher], *typed]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return begin


def left_over(folder: Path) -> list[str]:
    return [path.name for path in (folder / "temporary").glob("evictbench-*")]


def test_a_failed_job_fails_the_sweep_and_no_other(start: Start, tmp_path: Path):
    program = start("basic", "-m", "seed=0,3,5,2", "limit=7")
    out, err = program.communicate(timeout=120)
    assert program.returncode == 1
    told = err[err.index("error: job") :]
    assert told == (
        "error: job 2 of 4 (seed=3): seed=3 is odd: use an even one.\n"
        "error: job 3 of 4 (seed=5): a fault of evictbench, ValueError: five\n"
    )
    assert {path.name for path in tmp_path.glob("ended-*")} == {"ended-0", "ended-2"}
    for number, seed in enumerate((0, 3, 5, 2), 1):
        assert re.search(rf"^job {number} of 4: seed={seed} -> .*, log .*\.log$", out, re.M)
    assert "job 2 of 4 (seed=3) failed, the others go on" in out
    assert not left_over(tmp_path)


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit", marks=pytest.mark.slow)])
def test_jobs_that_fail_or_die_elsewhere_are_named(start: Start, tmp_path: Path, launcher: str):
    program = start(launcher, "-m", "seed=3,9,4")
    out, err = program.communicate(timeout=120)
    assert program.returncode == 2
    assert "Traceback" not in err
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said[0].startswith("error: job 1 of 3 (seed=3): seed=3 is odd: use an even one. (log ")
    assert said[1].startswith("error: job 2 of 3 (seed=9): its process ended without a result")
    assert "seed=3 is odd" in (tmp_path / re.search(r"\(log (.*)\)$", said[0])[1]).read_text()
    # joblib stops the other jobs that run when one dies: then those are named, too
    assert (tmp_path / "ended-4").exists() or "job 3 of 3 (seed=4)" in said[2]
    assert len(re.findall(r"^job \d of 3: seed=\d -> .*, log .*\.log$", out, re.M)) == 3


@pytest.mark.parametrize(
    "launcher",
    ["basic", *(pytest.param(n, marks=pytest.mark.slow) for n in ("joblib", "submitit"))],
)
def test_a_stop_ends_the_jobs_too(start: Start, tmp_path: Path, launcher: str):
    program = start(launcher, "-m", "seed=8,2")
    _wait(tmp_path / "began-8")
    job = psutil.Process(int((tmp_path / "began-8").read_text()))
    below = psutil.Process(program.pid).children(recursive=True)
    program.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    program.send_signal(signal.SIGTERM)  # another one while it closes
    _, err = program.communicate(timeout=60)
    assert program.returncode == 143
    assert err.splitlines()[-1] == "stopped by SIGTERM: the same command goes on from here"
    assert "Traceback" not in err
    assert not psutil.wait_procs([job, *below], timeout=10)[1]
    assert not left_over(tmp_path)
    assert not (tmp_path / "ended-8").exists()


@pytest.mark.parametrize(
    ("number", "name"),
    [
        pytest.param(signal.SIGINT, "", id="int", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, " by SIGHUP", id="hup"),
    ],
)
def test_a_run_is_stopped_by(start: Start, tmp_path: Path, number: int, name: str):
    program = start("basic", "seed=8")
    _wait(tmp_path / "began-8")
    program.send_signal(number)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 128 + number
    assert err == f"stopped{name}: the same command goes on from here\n"
    assert not left_over(tmp_path)


@pytest.mark.parametrize("word", ["run", "report"])
@pytest.mark.parametrize("moment", [0.0, 0.1])
def test_a_stop_while_it_loads_is_one_sentence(tmp_path: Path, word: str, moment: float):
    program = subprocess.Popen(
        [sys.executable, "-c", WAITING, word, str(tmp_path / "here")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _wait(tmp_path / "here")
    time.sleep(moment)
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 130
    assert err == "stopped: the same command goes on from here\n"


# Runs the program as -m does, and tells when its first lines have run.
WAITING = """
import runpy, sys
from harness.process import stopping
word, place = sys.argv[1:]
listen = stopping.listen
stopping.listen = lambda: (listen(), open(place, "w").close())
sys.argv = ["harness", word]
runpy.run_module("harness", run_name="__main__", alter_sys=True)
"""


def _wait(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists() or (path.name.startswith("began") and not path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)
