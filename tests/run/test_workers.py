"""Several processes give the tables of one, whoever dies; prompts are made ahead, in order."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from harness.errors import UserError
from harness.report import reading
from harness.run import rays
from harness.run.collect import processes
from harness.run.local import ahead
from harness.settings.config import Config, EngineConfig, ModelConfig, RayConfig
from harness.settings.workers import check_workers, count_of, here, share_of, through_ray
from tests.run.conftest import Program, assert_same_tables, store_of

ROOT = Path(__file__).resolve().parents[2]
ROWS = 27  # of the fake MMBench
SECONDS = 300
RAY = ["workers=2", "ray.address=local", "device=cpu"]
BOTH = pytest.mark.parametrize("two", [["workers=2"], RAY], ids=["processes", "ray"])


def started(what: list[str], overrides: list[str], log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(ROOT / "tests" / "run" / "deaths.py"), *what, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


@contextmanager
def running(what: list[str], overrides: list[str], log: Path) -> Iterator[psutil.Process]:
    """The program, of which nothing is left at the end."""
    process = psutil.Process(started(what, overrides, log).pid)
    try:
        yield process
    finally:
        for one in [process, *process.children(recursive=True)] if process.is_running() else ():
            with suppress(psutil.NoSuchProcess):
                one.kill()


def ended(what: list[str], overrides: list[str], log: Path) -> tuple[int | None, str]:
    with running(what, overrides, log) as process:
        return process.wait(SECONDS), log.read_text()


def rows_in(store: Path) -> int:
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as db:
        try:
            return db.execute("SELECT count(DISTINCT row) FROM responses").fetchone()[0]
        except sqlite3.OperationalError:  # it is being made
            return 0


@pytest.mark.slow  # test_pool.py tries the same without processes
@BOTH
def test_two_workers_of_which_one_dies_give_the_tables_of_one_process(
    overrides: list[str], in_one: Path, tmp_path: Path, two: list[str]
) -> None:
    once = ["4", str(tmp_path / "died")]
    code, told = ended(once, [*overrides, *two], tmp_path / "log")
    assert code == 0, told
    assert (tmp_path / "died").exists()
    assert re.search(r"worker \d died at task=mmbench_mini, row ", told)
    assert_same_tables(in_one, tmp_path / "run")


@pytest.mark.slow
@BOTH
def test_a_row_that_ends_two_workers_fails_by_name_and_the_others_are_stored(
    call: Program,
    overrides: list[str],
    in_one: Path,
    engine: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    two: list[str],
) -> None:
    code, told = ended(["5", "-"], [*overrides, *two], tmp_path / "log")
    assert code == 2
    (said,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert "2 workers died at task=mmbench_mini, row " in said
    named = re.findall(r"row (\d+)", said)
    assert rows_in(store_of(tmp_path)) == ROWS - len(named)
    assert len(named) == 4  # the rotations of shape 5
    monkeypatch.setitem(sys.modules, "ray", None)  # one device has no need of it
    assert call(*overrides) == 0
    assert_same_tables(in_one, tmp_path / "run")


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_its_answers_and_no_process(
    call: Program,
    overrides: list[str],
    in_one: Path,
    engine: object,
    tmp_path: Path,
    number: signal.Signals,
    two: list[str],
) -> None:
    log = tmp_path / "log"
    with running(["none", "-"], [*overrides, *two], log) as process:
        for _ in range(SECONDS * 20):
            stores = list(tmp_path.glob("answers/*.sqlite"))
            if stores and rows_in(stores[0]) > 3:
                break
            time.sleep(0.05)
        # Ray's own agents outlive a run that is killed with -9; they hold no device.
        others = [one for one in process.children(recursive=True) if "Agent" not in one.name()]
        names = [one.name() for one in others]
        if two is RAY:
            assert sum(name.startswith("ray::Actor") for name in names) == 2
        else:
            assert sum("spawn_main" in "".join(one.cmdline()) for one in others) == 2
        process.send_signal(number)
        code = process.wait(60)
    assert code == (-number if number == signal.SIGKILL else 128 + number), log.read_text()
    _, alive = psutil.wait_procs(others, timeout=60)
    assert alive == []
    assert not reading.is_finished(tmp_path / "run")
    assert call(*overrides) == 0
    assert_same_tables(in_one, tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["workers=0"], "workers=0 is no number of processes"),
        (["workers=two"], "workers=two is no number of processes"),
        (["workers=1.5"], "workers=1.5 is no number of processes"),
        (["workers=true"], "workers=True is no number of processes"),
        (["workers=2", "device=cuda:1"], "each worker takes its own: device=cuda"),
        (["ray.address=auto"], "give workers=ray with it"),
        (["workers=ray", "ray.address=auto"], "give device=cuda or device=cpu"),
    ],
)
def test_what_is_no_number_of_workers_is_refused_before_anything_loads(
    call: Program, overrides: list[str], capsys, settings: list[str], said: str
) -> None:
    assert call(*overrides, *settings) == 2
    assert said in capsys.readouterr().err


def test_a_run_without_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'evictbench\[ray\]'"):
        rays.imported()


def test_a_cluster_that_is_not_there_is_one_sentence_at_once() -> None:
    config = Config(workers=2, ray=RayConfig("127.0.0.1:1"))
    ray = rays.imported()
    began = time.monotonic()
    with pytest.raises(UserError, match=r"at ray\.address=127\.0\.0\.1:1: .*refused"):
        rays.join(ray, config)
    assert time.monotonic() - began < rays.CONNECT + 1


def test_workers_are_counted_by_devices() -> None:
    assert count_of("ray", 8, "cuda") == 8
    assert count_of(3, 8, "cuda") == 3
    with pytest.raises(UserError, match="needs 3 GPUs and Ray has 2"):
        count_of(3, 2, "cuda")
    with pytest.raises(UserError, match="needs 1 GPUs and Ray has 0"):
        count_of("ray", 0, "cuda")
    assert share_of(16, 3) == 5
    assert share_of(2, 10_000) == 1
    check_workers(None, None, "cuda:1")
    check_workers("ray", "head:6379", "cuda")


def test_a_cpu_gets_the_processes_that_have_a_core_rows_and_memory_each() -> None:
    gigabyte = 1 << 30
    plenty = {"cores": 4, "rows": 1000, "weights": 5 << 20, "free": 16 * gigabyte}

    def automatic(kind: str = "cpu", **other: int | None) -> int:
        return here("auto", kind, **{**plenty, **other})

    assert automatic() == 4
    assert automatic(cores=1) == automatic(rows=79) == automatic(weights=None) == 1
    assert automatic("cuda") == 1
    assert automatic(rows=80) == 2
    assert automatic(free=5 * gigabyte) == 2
    assert automatic(weights=15 * gigabyte, free=100 * gigabyte) == 1
    assert automatic(cores=64) == 7  # of 16 GiB
    assert automatic(cores=64, free=10**13) == 8
    assert here(3, "cpu", 1, 1, None, 0) == 3
    assert here(None, "cpu", 8, 1000, 1, 10**13) == 1


@pytest.mark.parametrize(
    ("workers", "address", "kind", "ray"),
    [
        (None, None, "cuda", False),
        ("auto", None, "cuda", False),
        ("ray", None, "cpu", True),
        (2, None, "cpu", False),
        (2, None, "cuda", True),
        (2, "local", "cpu", True),
    ],
)
def test_ray_starts_workers_on_gpus_and_clusters(
    workers: object, address: str | None, kind: str, ray: bool
) -> None:
    assert through_ray(workers, address, kind) is ray


def test_a_part_of_a_run_and_many_threads_leave_no_core_for_others(weights: Path) -> None:
    model = ModelConfig(pretrained=str(weights))
    alone = Config(model=model, workers="auto", shard="0/2")
    assert processes(alone, "cpu", 1000, 4) == 1
    threaded = Config(model=model, workers="auto", engine=EngineConfig(threads=4))
    assert processes(threaded, "cpu", 1000, 4) == 1
    assert processes(Config(model=model, workers="auto"), "cpu", 1000, 2) == 2


def test_prompts_are_made_ahead_in_order_and_few_at_a_time() -> None:
    given, made = [], []
    items = (given.append(n) or n for n in range(9))

    def make(number: int) -> int:
        made.append(threading.current_thread() is threading.main_thread())
        return number * number

    for number, square in ahead(make, items, 2):
        assert square == number * number
        assert len(given) <= number + 3
    assert given == list(range(9))
    assert made == [False] * 9


def test_what_cannot_be_made_is_raised_at_its_turn() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise UserError("three")
        return number

    seen: list[int] = []
    with pytest.raises(UserError, match="three"):
        seen.extend(number for number, _ in ahead(make, range(9), 2))
    found: Iterator = ahead(make, range(9), 2)
    assert [next(found)[1] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="three"):
        next(found)
    assert not [one for one in threading.enumerate() if one.name.startswith("evictbench-prompts")]
