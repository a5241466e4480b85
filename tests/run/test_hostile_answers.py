"""Nothing that a model can say stops a run, its rerun or its report."""

import io
import itertools
import sys
from pathlib import Path

import openpyxl
import pandas as pd
import pytest

from harness.run import collect
from harness.run import report as command
from harness.scoring.rows import storable
from tests.run.conftest import Program
from tests.run.fakes import FakeEngine
from tests.scoring import mmbench_data

HOSTILE = (
    "B\x07", "\x00B", "B\x1b[31m\x1b[0m", "\x7f\x80\x85B", "B\r\n", "\x0b\x0c", "=B", "=1+1",
    "#N/A", "+1", "@SUM(A1)", "\ud800B", "B\udfff", "\ufffe\uffffB", "\u2028B\u2029", "\u202eB",
    "\ufeffB", "</script><script>alert(1)</script>", "| a | b |\n|---|---|", "{{7*7}}{% x %}",
    "%s{0}", "'; DROP TABLE responses; --", "$\\frac{", "_x0041_", "nan", "None", "inf",
    "9" * 5000, "", "  ", "x" * 40_000 + " B", "\U0001f600" * 20_000 + "B", "答案是B", "\uff22",
    "e\u0301" * 99, "\u0412",
)  # fmt: skip


class Hostile(FakeEngine):
    """Says each of the hostile answers in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = itertools.cycle(HOSTILE)

    def _say(self, cell, text, letters):
        return next(self.turn)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = Hostile()
    monkeypatch.setattr(collect, "load_engine", lambda *loading: fake)
    return fake


def ascii_terminal(monkeypatch: pytest.MonkeyPatch) -> io.TextIOWrapper:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    return terminal


@pytest.mark.slow
@pytest.mark.usefixtures("whole_report")
def test_a_run_of_hostile_answers_ends_and_can_be_given_again(
    call: Program, hostile: FakeEngine, overrides: list[str], tmp_path: Path, monkeypatch, capfd
):
    terminal = ascii_terminal(monkeypatch)
    run = [*overrides, "method=[random,restkv]", "wandb.mode=offline"]
    assert call(*run) == 0
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert set(samples["text"]) == {storable(text) for text in HOSTILE}
    bell = samples[samples["text"] == "B\x07"]
    assert bell["score_other"].notna().all()
    asked = len(hostile.calls)
    assert call(*run, "extraction=strict", "run.name=strict", "wandb.mode=disabled") == 0
    assert len(hostile.calls) == asked  # all in the store
    assert command.main([str(tmp_path / "run")]) == 0
    terminal.flush()
    assert b"\\xb7 mmbench_mini" in terminal.buffer.getvalue()  # the middle dot, spelled out
    for name in ("answer.md", "summary.md", "report.html"):
        text = (tmp_path / "run" / name).read_text(encoding="utf-8")
        assert "\x07" not in text
        assert "\x00" not in text
        assert "<script>alert(1)" not in text
    assert "Traceback" not in capfd.readouterr().err


def test_the_file_for_the_server_holds_what_was_said(
    call: Program, hostile: FakeEngine, overrides: list[str], tmp_path: Path
):
    rows = [{**row, "answer": None, "split": "test"} for row in mmbench_data.rows("en", 9)]
    data = mmbench_data.folder(tmp_path / "data", "en", "test", rows)
    run = [
        *(one for one in overrides if not one.startswith("tasks.")),
        "method=[random]", "ratios=[0.5,0.9]", "task=mmbench_en_test", "blank_image=false",
        f"tasks.mmbench_en_test.overrides.dataset_path={data}",
    ]  # fmt: skip
    assert call(*run) == 0
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    (file,) = (tmp_path / "run" / "submissions" / "mmbench_en_test").glob("full*.xlsx")
    header, *lines = openpyxl.load_workbook(file).active.iter_rows()
    place = [cell.value for cell in header].index("prediction")
    full = samples[samples["method"] == "full"].sort_values("row")
    assert len(lines) == len(full)
    for line, text in zip(lines, full["text"], strict=True):
        cell = line[place]
        assert cell.data_type in ("s", "n")
        assert (cell.value is None) == (not text.strip("\x0b\x0c"))
        assert len((cell.value or "").encode("utf-16-le")) <= 2 * 32_767
        if "B" in text:
            assert "B" in cell.value
        if text.startswith("="):
            assert (cell.value, cell.data_type) == (text, "s")
