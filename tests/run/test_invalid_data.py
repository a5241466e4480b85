"""Bad data on the command line: told before the model loads, or left out and said everywhere."""

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.run import collect
from tests.run.conftest import Program
from tests.run.fakes import FakeEngine
from tests.scoring.faulty import FILE, changed, half, noisy, rows, shows, write


@pytest.fixture
def asks(overrides: list[str]) -> list[str]:
    """The small run without its data and with one method."""
    kept = [o for o in overrides if "dataset_path" not in o and not o.startswith("method=")]
    return [*kept, "method=random"]


def on(folder: Path) -> str:
    return f"tasks.mmbench_mini.overrides.dataset_path={folder}"


def test_bad_rows_are_refused_before_the_model_loads_and_nothing_else_is_said(
    call: Program, asks: list[str], tmp_path: Path, capfd, monkeypatch
) -> None:
    def loads(*loading: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(collect, "load_engine", loads)
    cut = write(tmp_path / "cut", rows())
    (cut / FILE).write_bytes(half((cut / FILE).read_bytes()))
    answer = write(tmp_path / "answer", changed(answer="E")())
    image = write(tmp_path / "image", shows(half(noisy()))())
    told = {
        answer: "row 0 (index 7), column answer: 'E'",
        image: "row 0 (index 7), column image: the image is cut off",
        cut: f"{FILE} is no whole parquet file",
    }
    for folder, why in told.items():
        assert call(*asks, on(folder)) == 2
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        assert len(out.splitlines()) == 1  # where the run is and what it loads
        (said,) = err.splitlines()
        assert "task=mmbench_mini cannot be scored: " in said
        assert why in said


def test_questions_that_are_skipped_are_counted_and_named_everywhere(
    call: Program, engine: FakeEngine, asks: list[str], tmp_path: Path, capfd
) -> None:
    table = rows(9)
    table[1]["answer"], table[2]["image"] = "E", {"bytes": half(noisy()), "path": None}
    arguments = [*asks, on(write(tmp_path / "data", table)), "tasks.mmbench_mini.invalid=skip"]
    assert call(*arguments) == 0
    out, err = capfd.readouterr()
    said = "2 of 9 questions of mmbench_mini are left out (tasks.mmbench_mini.invalid=skip)"
    assert out.count(said) == 1
    assert "Traceback" not in err
    run = tmp_path / "run"
    for name in ("summary.md", "answer.md"):
        text = (run / name).read_text().replace("\\", "")
        assert said in text, name
        assert "8, 9; row 1 (index 8), column answer: 'E'" in text
    behind = (run / "answer.md").read_text().partition("## What the data does not say")[2]
    assert "2 of 9 questions" in behind
    facts = json.loads((run / "manifest.json").read_text())
    (first, second) = facts["left_out"]["mmbench_mini"]
    assert (first["row"], first["index"], first["column"]) == (1, 8, "answer")
    assert (second["row"], second["index"], second["column"]) == (2, 9, "image")
    frame = pd.read_parquet(run / "samples.parquet")
    assert frame["question_id"].nunique() == 7
    assert {*frame["row"]} == {
        n for n, row in enumerate(table) if row["index"] % 1_000_000 not in (8, 9)
    }


def test_a_question_that_the_model_cannot_take_is_refused_before_it_loads(
    call: Program, asks: list[str], tmp_path: Path, capfd, monkeypatch
) -> None:
    monkeypatch.setattr(collect, "load_engine", lambda *loading: pytest.fail("it was loaded"))
    table = changed(slice(0, None, 3), question="what is it " * 90_000)()
    own = [one for one in asks if not one.startswith("model.pretrained")]
    assert call(*own, on(write(tmp_path / "data", table))) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert "row 0 (index 7): its prompt has 270,0" in said
    assert "tiny_vlm takes" in said


def test_odd_characters_in_a_question_stop_nothing(
    call: Program, engine: FakeEngine, asks: list[str], tmp_path: Path
) -> None:
    odd = "=What\t is\x7f \u0085 it?\u202e <b> | `x`"
    table = changed(slice(0, None, 3), question=odd, hint=odd, category="a\u202eb")()
    assert call(*asks, on(write(tmp_path / "data", table))) == 0
    frame = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert {*frame["question"]} >= {odd}


@pytest.mark.usefixtures("no_report")
def test_data_put_right_are_other_data(
    call: Program, engine: FakeEngine, asks: list[str], tmp_path: Path
) -> None:
    folder = write(tmp_path / "data", changed(answer="E")())
    skip = [*asks, on(folder), "tasks.mmbench_mini.invalid=skip"]
    assert call(*skip) == 0
    calls = len(engine.calls)
    (folder / FILE).unlink()
    write(tmp_path / "new", rows())
    (tmp_path / "new" / FILE).rename(folder / FILE)
    assert call(*asks, on(folder)) == 2  # the folder holds results on other data
    assert call(*asks, on(folder), "run.name=right") == 0
    assert len(engine.calls) > calls  # other data, other answers
    frame = pd.read_parquet(tmp_path / "right" / "samples.parquet")
    assert frame["question_id"].nunique() == 3


@pytest.mark.parametrize("value", ["drop", "True", "null"])
def test_another_way_with_bad_rows_is_refused(
    value: str, call: Program, asks: list[str], capfd
) -> None:
    assert call(*asks, f"tasks.mmbench_mini.invalid={value}") == 2
    assert "invalid" in capfd.readouterr().err
