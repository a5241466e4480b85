"""A run in parts gives the tables of one process, whoever dies and however many parts there are."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.records import database, schema, shards
from harness.records.copies import sound_copy
from harness.report import reading
from harness.settings.shards import Shard, shard_of
from tests.run.conftest import Program, assert_same_tables, table
from tests.run.fakes import FakeEngine

ROOT = Path(__file__).resolve().parents[2]
ROWS = 27  # of the fake MMBench: 9 questions, each with 2 to 4 rotations


class Counts(FakeEngine):
    """An engine that notes which rows it answered, and dies at the n-th."""

    rows = 1_000

    def answer(self, messages, cells, *asked, **how):
        if len(cells) > 1:  # not the blank image
            if self.rows == 0:
                raise KeyboardInterrupt
            self.rows -= 1
        return super().answer(messages, cells, *asked, **how)

    @property
    def answered(self) -> int:
        return sum(len(cells) > 1 for cells in self.calls)


@pytest.fixture
def counting(monkeypatch) -> Counts:
    fake = Counts()
    monkeypatch.setattr("harness.run.collect.load_engine", lambda *loading: fake)
    return fake


def test_three_parts_give_the_tables_of_one_process(
    call: Program, counting: Counts, overrides: list[str], in_one: Path, tmp_path: Path, capsys
):
    run = tmp_path / "run"
    assert call(*overrides, "shard=2/3") == 0
    assert call(*overrides, "shard=0/3") == 0
    assert not reading.is_finished(run)
    assert 0 < counting.answered < ROWS
    capsys.readouterr()
    assert call("merge", str(run)) == 2
    told = capsys.readouterr()
    missing = ROWS - counting.answered
    assert f"{missing} of {ROWS} rows are missing (mmbench_mini {missing})" in told.err
    assert not reading.is_finished(run)

    assert call(*overrides, "shard=1/3") == 0
    assert counting.answered == ROWS
    assert_same_tables(in_one, run)
    digest = (run / "samples.parquet").read_bytes()
    assert call("merge", str(run)) == 0
    assert (run / "samples.parquet").read_bytes() == digest
    assert reading.manifest(run)["registered"] is True
    made = reading.manifest(run)["provenance"]["command"]
    typed = shlex.join(["evictbench", *overrides])  # neither a part nor the merge
    assert made.replace("++", "") == typed
    assert not list((run / "shards").glob("*/*-wal"))


def test_what_a_dead_part_left_goes_to_other_parts(
    call: Program, counting: Counts, overrides: list[str], in_one: Path, tmp_path: Path, capsys
):
    counting.rows = 4
    assert call(*overrides, "shard=0/2") == 130
    counting.rows = 1_000
    capsys.readouterr()
    assert call("merge", str(tmp_path / "run")) == 2
    told = capsys.readouterr().err
    assert "These parts have not ended: 0/2 on " in told
    assert f"{ROWS - 4} of {ROWS} rows" in told
    for part in ("0/3", "1/3", "2/3"):
        assert call(*overrides, f"shard={part}") == 0
    assert counting.answered == ROWS  # nothing lost, nothing twice
    assert_same_tables(in_one, tmp_path / "run")


def start(overrides: list[str], part: str) -> "subprocess.Popen[bytes]":
    driver = [sys.executable, str(ROOT / "tests" / "run" / "driver.py"), "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = subprocess.DEVNULL
    command = [*driver, *overrides, f"shard={part}"]
    return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)


def rows_of(store: Path) -> set[int]:
    """The rows that a part answered with every cell, while it may be writing."""
    with sound_copy(store) as (db, _):
        return set.intersection(*(schema.answered(db).values() or [set()]))


@pytest.mark.slow
def test_parts_at_once_of_which_one_is_killed(
    overrides: list[str], in_one: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "shards"
    running = [start(overrides, part) for part in ("0/2", "1/2")]
    for _ in range(3_000):
        stores = list(folder.glob(f"1-of-2*/{shards.ANSWERS}"))
        if stores and len(rows_of(stores[0])) > 2:
            break
        time.sleep(0.02)
    running[1].kill()
    assert [process.wait(120) for process in running] == [0, -signal.SIGKILL]
    assert not reading.is_finished(tmp_path / "run")
    running = [start(overrides, part) for part in ("0/3", "1/3", "2/3")]  # the dead one's rest
    assert [process.wait(120) for process in running] == [0, 0, 0]
    answered = [row for store in folder.glob(f"*/{shards.ANSWERS}") for row in rows_of(store)]
    assert sorted(answered) == list(range(ROWS))  # nothing lost, nothing twice
    assert_same_tables(in_one, tmp_path / "run")


def test_a_part_computes_only_the_cells_that_the_store_lacks(
    call: Program, counting: Counts, overrides: list[str], in_one: Path, tmp_path: Path
):
    fewer = [text.replace("[random,restkv]", "[random,snapkv]") for text in overrides]
    assert call(*fewer, "analysis.method=snapkv", "run.name=fewer") == 0
    counting.calls.clear()
    assert call(*overrides, "shard=0/1") == 0
    assert {len(cells) for cells in counting.calls} == {2}  # the full cache and restkv
    assert table(tmp_path / "run", "cells").equals(table(in_one, "cells"))


@pytest.mark.usefixtures("no_report")
def test_parts_of_other_settings_or_software_are_refused(
    call: Program, counting: Counts, overrides: list[str], tmp_path: Path, capsys
):
    assert call(*overrides, "shard=0/2") == 0
    assert call(*overrides, "shard=1/2", "analysis.margin=3") == 2
    assert "are parts of different runs (margin 2.0 -> 3.0)" in capsys.readouterr().err
    (head,) = (tmp_path / "run" / "shards").glob(f"0-of-2*/{shards.HEAD}")
    told = json.loads(head.read_text())
    told["software"]["torch"] = "1.0"
    head.write_text(json.dumps(told))
    assert call(*overrides, "shard=1/2") == 2
    assert "computed by different software (torch 1.0 -> " in capsys.readouterr().err
    assert call("merge", "--mixed", str(tmp_path / "run")) == 2  # folded; part 1 is missing
    assert call(*overrides, "shard=1/2") == 0
    assert reading.is_finished(tmp_path / "run")


@pytest.mark.slow
def test_damage_in_a_part_is_said_and_answered_anew(
    call: Program, counting: Counts, overrides: list[str], in_one: Path, tmp_path: Path, capsys
):
    assert call(*overrides, "shard=0/2") == 0
    (path,) = (tmp_path / "run" / "shards").glob(f"*/{shards.ANSWERS}")
    content = bytearray(path.read_bytes())
    place = content.rindex(b"[1, 2]")  # the tokens of an answer
    content[place + 1] = ord("7")
    path.write_bytes(content)
    assert call("merge", str(tmp_path / "run")) == 2
    assert "note: 1 damaged entries" in capsys.readouterr().out
    assert call(*overrides, "shard=1/2") == 0
    assert call(*overrides, "shard=0/1") == 0
    assert_same_tables(in_one, tmp_path / "run")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, Shard(3, 8)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, Shard(1, 2)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "4",
                "SLURM_ARRAY_TASK_MIN": "2",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "RANK": "1",
                "WORLD_SIZE": "4",
            },
            Shard(5, 12),
        ),
    ],
)
def test_launchers_tell_the_part(environment: dict[str, str], expected: Shard):
    assert shard_of("auto", environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("auto", {}, "finds none of SLURM_ARRAY_TASK_ID, RANK, SLURM_PROCID"),
        ("auto", {"RANK": "x", "WORLD_SIZE": "2"}, "cannot read RANK=x"),
        ("auto", {"RANK": "2", "WORLD_SIZE": "2"}, "part 2 of 2 from RANK"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, "needs SLURM_ARRAY_TASK_MIN"),
        ("8/8", {}, "the parts are 0/8 to 7/8"),
        ("0/0", {}, "the parts are 0/1 to 0/1"),
        ("1", {}, "give shard=i/n"),
        ("-1/2", {}, "give shard=i/n"),
    ],
)
def test_what_is_no_part_is_refused(text: str, environment: dict[str, str], said: str):
    with pytest.raises(UserError, match=said):
        shard_of(text, environment)


def test_a_shard_is_refused_before_anything_loads(call: Program, overrides: list[str], capsys):
    assert call(*overrides, "shard=3/3") == 2
    assert "the parts are 0/3 to 2/3" in capsys.readouterr().err


def test_the_log_of_sqlite_is_chosen_by_the_file_system(tmp_path: Path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"30 22 0:44 / {tmp_path}/far rw - nfs4 server:/home rw\n"
        f"31 30 0:45 / {tmp_path}/far/near rw - tmpfs tmpfs rw\n"
    )
    places = [tmp_path / "a", tmp_path / "far" / "a" / "b", tmp_path / "far" / "near" / "c"]
    assert [database.is_remote(place, mounts) for place in places] == [False, True, False]
    assert not database.is_remote(tmp_path, tmp_path / "none")
