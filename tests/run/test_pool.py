"""How rows are handed to workers, and what becomes of those that a dead one had in hand."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.models.segments import Texts
from harness.run import pool as pools
from harness.run.actor import Refused, Task
from harness.run.pool import IN_HAND, Pool
from harness.scoring.rows import Row
from harness.settings.config import Config
from harness.settings.grid import Cell

FULL = Cell("full", "full")


class Died(Exception):
    pass


class Full(Exception):
    pass


@dataclass(frozen=True, eq=False)
class Reference:
    worker: "Process"
    row: Row | None


class Process:
    def __init__(self, number: int) -> None:
        self.number, self.dead, self.died = number, False, Died


class Fake:
    """A launcher in this process: what was asked first comes back first.

    A worker answers with the number of the row, unless `fate` says that it dies.
    """

    deaths = (Died, Full)
    watch = "a clock tells more"
    logs = "logs"

    def __init__(self, fate: Callable[[Process, Row | None], object]) -> None:
        self.fate = fate
        self.started: list[Process] = []
        self.most: Counter[Process] = Counter()  # in hand at once
        self.asked: list[tuple[int, int]] = []  # worker and row

    def start(self, task: Task, number: int) -> Process:
        self.started.append(Process(number))
        return self.started[-1]

    def begin(self, worker: Process) -> Reference:
        return Reference(worker, None)

    def answer(self, worker: Process, row: Row) -> Reference:
        return Reference(worker, row)

    def ended(self, asked: Sequence[Reference], seconds: float) -> list[Reference]:
        for worker, count in Counter(one.worker for one in asked if one.row).items():
            self.most[worker] = max(self.most[worker], count)
        return list(asked[:1])

    def result(self, reference: Reference) -> Any:
        worker, row = reference.worker, reference.row
        found = None if worker.dead else self.fate(worker, row)
        if isinstance(found, type):
            worker.dead, worker.died = True, found
        if worker.dead:
            raise worker.died
        if row is not None:
            self.asked.append((worker.number, row.number))
        return found or (row.number if row else {"host": worker.number})


def rows(questions: int, each: int = 3) -> list[Row]:
    return [
        Row("t", n, n // each, list, {}, {"f": FULL}, {}, (), Texts(), False)
        for n in range(questions * each)
    ]


def pool(launcher: Fake, count: int, told: Callable = lambda origin: None) -> Pool:
    task = Task(Config(), Path(), {"device": "cpu"}, 1, lambda *_: None)
    return Pool(launcher, task, count, told)


def test_whole_questions_go_to_a_worker_and_few_rows_are_in_hand() -> None:
    ray, origins = Fake(lambda worker, row: None), []
    found = list(pool(ray, 3, origins.append).run(rows(7)))
    assert sorted((row.number, answer) for row, answer in found) == [(n, n) for n in range(21)]
    by = {question: {w for w, n in ray.asked if n // 3 == question} for question in range(7)}
    assert all(len(workers) == 1 for workers in by.values())
    assert len({worker for worker, _ in ray.asked}) == 3
    assert set(ray.most.values()) == {IN_HAND}
    assert [origin["host"] for origin in origins] == [worker for worker, _ in ray.asked]


@pytest.mark.parametrize("death", [Died, Full])
def test_the_rows_of_a_dead_worker_are_answered_alone(death: type, capsys) -> None:
    """Once dead at row 4; what was in hand comes alone, the rest of the question as before."""
    killed: list[int] = []

    def fate(worker: Process, row: Row | None) -> object:
        if row is not None and row.number == 4 and not killed:
            killed.append(worker.number)
            return death
        return None

    ray = Fake(fate)
    found = [row.number for row, _ in pool(ray, 2).run(rows(6))]
    assert sorted(found) == list(range(18))
    assert len(ray.started) == 3
    assert sum(n == 4 for _, n in ray.asked) == 1
    assert "died at task=t, row 4, task=t, row 5" in capsys.readouterr().err


def test_a_row_that_ends_two_workers_fails_by_name_and_only_that() -> None:
    ray = Fake(lambda worker, row: Died if row is not None and row.number == 4 else None)
    found: list[int] = []
    with pytest.raises(UserError, match=r"^2 workers died at task=t, row 4: all other"):
        found.extend(row.number for row, _ in pool(ray, 2).run(rows(6)))
    assert sorted(found) == [n for n in range(18) if n != 4]
    assert len(ray.started) == 4


def test_workers_that_die_while_they_load_end_the_run() -> None:
    ray = Fake(lambda worker, row: Died if row is None else None)
    with pytest.raises(UserError, match="2 workers died while they loaded"):
        list(pool(ray, 2).run(rows(2)))
    one = Fake(lambda worker, row: Died if row is None and len(one.started) == 2 else None)
    assert len(list(pool(one, 2).run(rows(2)))) == 6


def test_what_a_worker_refuses_ends_the_run_in_its_sentence() -> None:
    said = Refused("row 3: a prompt is too long.")
    ray = Fake(lambda worker, row: said if row is not None and row.number == 3 else None)
    with pytest.raises(UserError, match=r"^row 3: a prompt is too long\.$"):
        list(pool(ray, 2).run(rows(3)))


def test_a_row_that_fails_by_itself_ends_the_run_after_the_others() -> None:
    said = Refused("row 3: a prompt does not fit.", row=True)
    ray = Fake(lambda worker, row: said if row is not None and row.number == 3 else None)
    found: list[int] = []
    with pytest.raises(UserError, match=r"^row 3: a prompt does not fit\. All other answers"):
        found.extend(row.number for row, _ in pool(ray, 2).run(rows(3)))
    assert sorted(found) == [n for n in range(9) if n != 3]


def test_no_row_is_no_work_and_rows_may_come_again() -> None:
    ray = Fake(lambda worker, row: None)
    workers = pool(ray, 2)
    assert list(workers.run([])) == []
    for _ in range(2):
        assert len(list(workers.run(rows(1, each=1)))) == 1
    assert len(ray.started) == 2


def test_long_loading_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(pools, "LONG", -1.0)
    list(pool(Fake(lambda worker, row: None), 2).run(rows(2)))
    assert (
        capsys.readouterr().err.count("no worker has loaded its model yet; a clock tells more") == 1
    )
