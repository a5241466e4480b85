"""What stands on the terminal: lines that fit, and a word for each thing that takes time."""

import pytest

from harness import stats
from harness.process import console
from harness.report import tables
from tests.outputs.conftest import sweep
from tests.run.conftest import Program
from tests.run.fakes import FakeEngine


@pytest.mark.parametrize(
    ("columns", "width"), [("80", 80), ("250", 100), ("20", 40), ("", 100), ("0", 100)]
)
def test_the_width_is_the_terminals_within_reason(
    monkeypatch: pytest.MonkeyPatch, columns: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert console.width() == width


@pytest.mark.parametrize("wide", [40, 80, 100])
def test_a_table_fits(wide: int) -> None:
    samples = sweep(("random", "restkv_mean_relative_with_a_long_name"), ratios=(0.5, 0.7, 0.9))
    samples.loc[samples["method"].eq("random"), "exposed_tokens"] = 0
    text = tables.console_table(stats.summarise(samples), None, wide)
    assert max(map(len, text.splitlines())) <= wide
    for number in ("0.5", "0.7", "0.9"):
        assert number in text


def test_a_run_says_what_takes_time(
    call: Program,
    overrides: list[str],
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(*overrides, "limit=4") == 0
    told = capsys.readouterr()
    phases = (
        "loading mmbench_mini with lmms-eval",
        "rows to compute, loading tiny_vlm",
        "building the first requests with lmms-eval",
        "scoring every answer with lmms-eval",
        "computing the statistics, then writing tables, pictures and the report",
    )
    places = [told.out.index(phase) for phase in phases]
    assert places == sorted(places)
    bar = [
        line
        for line in told.err.replace("\r", "\n").splitlines()
        if "tiny_vlm mmbench_mini" in line
    ]
    assert bar
    assert all(len(line) < 80 for line in bar)
    assert "cells/row" in bar[-1]
    table = told.out[told.out.index("tiny_vlm \u00b7") :].split("samples")[0]
    assert max(map(len, table.splitlines())) <= 80
