"""Workers in processes of this machine: what they answer, and what is left of them."""

import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from harness.models.identity import identify
from harness.models.segments import Texts
from harness.run.actor import Task
from harness.run.pool import Pool
from harness.run.spawned import Spawned
from harness.scoring.rows import Row
from harness.settings.config import Config, ModelConfig
from harness.settings.grid import Cell
from tests.run.fakes import FakeEngine

FULL_CELL = Cell("full", "full")


class Odd(FakeEngine):
    """Dies once at row 1, and has a fault at row 7."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = marker

    def answer(self, messages, cells, *how):
        text = messages[0]["content"][0]["text"]
        if text == "row 1" and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "row 7":
            raise ZeroDivisionError("seven")
        print("said by a library")
        return super().answer(messages, cells, *how)


@dataclass(frozen=True)
class Loading:
    marker: Path

    def __call__(self, *loading: object) -> Odd:
        return Odd(self.marker)


@pytest.fixture
def launcher() -> Iterator[Spawned]:
    found = Spawned()
    yield found
    found.close()


def rows(*numbers: int) -> list[Row]:
    cells: Mapping[str, Cell] = {"key": FULL_CELL}
    return [
        Row("t", n, n, lambda n=n: asked(n), cells, cells, {}, ("A", "B"), Texts(), False)
        for n in numbers
    ]


def asked(number: int) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "text", "text": f"row {number}"}]}]


def test_a_dead_process_is_replaced_and_a_fault_is_told(
    launcher: Spawned, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = Config(model=ModelConfig(pretrained=str(weights)))
    context = {"device": "cpu", "dtype": "float32", "weights": identify(str(weights))}
    task = Task(config, tmp_path, context, 1, Loading(tmp_path / "died"))
    hosts: list[object] = []
    pool = Pool(launcher, task, 2, hosts.append)
    found = {row.number: answered for row, answered in pool.run(rows(0, 1, 2, 3))}
    assert sorted(found) == [0, 1, 2, 3]
    assert all(list(each.answers) == ["key"] for each in found.values())
    assert len(hosts) == 4
    assert re.search(r"died at .*task=t, row 1\b", capfd.readouterr().err)
    logs = "".join(path.read_text() for path in tmp_path.glob("worker-*.log"))
    assert logs.count("said by a library") >= 4
    with pytest.raises(RuntimeError, match="ZeroDivisionError: seven"):
        list(pool.run(rows(7)))
    living = psutil.Process().children()
    launcher.close()
    assert not [one for one in living if one.is_running() and "spawn_main" in str(one.cmdline())]


def test_processes_end_with_the_one_that_started_them(launcher: Spawned, tmp_path: Path) -> None:
    """Even where they are busy: all that tells them is that nobody listens any more."""
    task = Task(Config(), tmp_path, {"device": "cpu"}, 1, time.sleep)
    worker = launcher.start(task, 0)
    launcher.begin(worker)
    worker.pipe.close()
    worker.process.join(60)
    assert worker.process.exitcode == 0
