"""What can be seen of a run before it ends: a report of the answers so far, and its order."""

import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from harness import stats
from harness.report import build, reading
from harness.run import meanwhile, report, unfinished
from tests.run.conftest import Program
from tests.run.fakes import FakeEngine


class Stops(FakeEngine):
    """An engine that breaks down at its n-th row; each has a picture and a blank one."""

    rows = 13

    def answer(self, *asked, **how):
        if len(self.calls) >= 2 * self.rows:
            raise KeyboardInterrupt
        return super().answer(*asked, **how)


@pytest.fixture
def stopping_engine(monkeypatch) -> FakeEngine:
    fake = Stops()
    monkeypatch.setattr("harness.run.collect.load_engine", lambda *loading: fake)
    return fake


def cells_of(folder: Path) -> pd.DataFrame:
    frame = pd.read_parquet(folder / "cells.parquet")
    return frame.drop(columns=stats.TIMINGS)


def test_a_report_of_half_a_run_is_that_of_its_smaller_limit(
    call: Program, stopping_engine: Stops, overrides: list[str], tmp_path: Path, capsys
):
    assert call(*overrides) == 130
    run = tmp_path / "run"
    assert call("report", str(run)) == 0
    told = capsys.readouterr().out
    manifest = reading.manifest(run)
    (done, total) = manifest["unfinished"]["mmbench_mini"]
    assert (1 < done < total, total) == (True, 9)
    assert f"So far ({done} of 9 questions): " in told
    first = f"Unfinished: {done} of 9 questions of mmbench_mini are answered."
    assert first in (run / "answer.md").read_text()
    assert first in (run / "summary.md").read_text()
    assert build.read(run).warning.startswith(first)
    so_far = cells_of(run)

    stopping_engine.rows = 1_000
    other = [one for one in overrides if not one.startswith("run.name")]
    assert call(*other, "run.name=less", f"limit={done}") == 0
    assert_frame_equal(so_far, cells_of(tmp_path / "less"))

    assert call(*overrides) == 0
    assert "unfinished" not in reading.manifest(run)
    assert "So far" not in (run / "answer.md").read_text()
    assert reading.is_finished(run)


def test_a_run_without_a_whole_question_has_no_report(
    call: Program, stopping_engine: Stops, overrides: list[str], tmp_path: Path, capsys
):
    stopping_engine.rows = 1
    assert call(*overrides) == 130
    assert call("report", str(tmp_path / "run")) == 2
    assert "no question has been answered by every cell yet" in capsys.readouterr().err
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_settings_of_a_folder_that_was_moved_are_about_the_new_place(
    call: Program, stopping_engine: Stops, overrides: list[str], tmp_path: Path
):
    call(*overrides)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "moved")
    found = unfinished.settings(
        tmp_path / "elsewhere" / "moved" / "config.yaml", tmp_path / "elsewhere" / "moved"
    )
    assert (found.run.dir, found.run.name) == (str(tmp_path / "elsewhere"), "moved")


@pytest.mark.parametrize("text", ["a: [", "nothing: 3", "limit: few", "- 1"])
def test_damaged_settings_are_one_sentence(tmp_path: Path, text: str, capsys):
    (tmp_path / "config.yaml").write_text(text)
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_process_beside_the_run_reports_it(
    call: Program, stopping_engine: Stops, overrides: list[str], tmp_path: Path
):
    call(*overrides)
    run = tmp_path / "run"
    reporter = meanwhile.Reporter(run, 0.001)
    time.sleep(0.01)
    reporter(None, 0, {})
    reporter(None, 1, {})  # one at a time
    assert reporter._process.wait(120) == 0, (run / meanwhile.LOG).read_text()
    reporter.close()
    assert "unfinished" in reading.manifest(run)
    assert (run / meanwhile.LOG).read_text().count("So far (") == 1


def test_a_run_ends_the_report_beside_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(meanwhile.sys, "executable", "/bin/sh")
    monkeypatch.setattr(meanwhile, "COMMAND", ("-c", "sleep 60"))
    reporter = meanwhile.Reporter(tmp_path, 1e-9)
    reporter(None, 0, {})
    reporter.close()
    assert reporter._process.returncode == -15


def test_a_finished_report_stays_until_the_run_ends(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys
):
    assert call(*overrides, "limit=4") == 0
    reporter = meanwhile.Reporter(tmp_path / "run", 1e-9)
    assert "the finished report" in capsys.readouterr().out
    reporter(None, 0, {})
    assert reporter._process is None


@pytest.mark.parametrize("protocol", ["replay", "both"])
def test_the_score_so_far_is_that_of_the_report(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, monkeypatch, protocol
):
    points: list[tuple[int, dict[str, float]]] = []

    @contextmanager
    def logging(folder, mode, total, **said):
        yield lambda rows, scores: points.append((rows, dict(scores)))

    monkeypatch.setattr("harness.tracking.live", logging)
    monkeypatch.setattr("harness.tracking.log", lambda *given, **named: [])
    (tmp_path / "run" / "wandb").mkdir(parents=True)
    assert call(*overrides, "wandb.mode=online", f"protocol={protocol}") == 0
    cells = pd.read_parquet(tmp_path / "run" / "cells.parquet")
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    rows = samples["row"].nunique()
    assert [count for count, _ in points] == list(range(1, rows + 1))
    last = points[-1][1]
    for _, cell in cells[~cells["control"].eq("blank_image")].iterrows():
        name = f"mmbench_mini/{cell['method']}"
        name += f"/{cell['ratio']:g}" if cell["method"] != "full" else ""
        name += f"/{cell['protocol']}" if protocol == "both" else ""
        own = samples[samples["cell_key"].eq(cell["cell_key"])]["score"]
        assert last[name] == pytest.approx(own.mean())
    assert len(last) == len(cells)


@pytest.mark.usefixtures("no_report")
def test_questions_are_answered_whole_and_in_the_order_of_limits(
    call: Program, stopping_engine: Stops, overrides: list[str], tmp_path: Path
):
    call(*overrides)
    stopping_engine.rows = 1_000
    other = [one for one in overrides if not one.startswith("run.name")]
    before = len(stopping_engine.calls)
    call(*other, "run.name=less", "limit=4")
    assert len(stopping_engine.calls) == before  # what was answered first
