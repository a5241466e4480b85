"""Both protocols in one run: the cells of each are those of a run of its own."""

import json

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from harness import stats
from harness.run import collect
from harness.scoring.benchmark import Benchmark
from tests.run.conftest import Program, table
from tests.run.fakes import FakeEngine

BOTH = ("replay", "context")
TABLES = ("cells", "samples", "comparisons", "verdicts")


@pytest.fixture
def asked(overrides: list[str]) -> list[str]:
    return [text for text in overrides if not text.startswith(("protocol=", "run.name="))]


def of_a_protocol(frame: pd.DataFrame, protocol: str) -> pd.DataFrame:
    return frame[frame["protocol"] == protocol].reset_index(drop=True)


def test_a_run_of_both_is_the_two_runs_in_one(
    call: Program, engine: FakeEngine, asked: list[str], tmp_path
) -> None:
    assert call(*asked, "run.name=both") == 0  # both is the default
    both = tmp_path / "both"
    assert {tuple({cell.protocol for cell in cells}) for cells in engine.calls} == {
        ("replay",),
        ("context",),
    }
    computed = len(engine.calls)
    for protocol in BOTH:
        assert call(*asked, f"protocol={protocol}", f"run.name={protocol}") == 0
        for name in TABLES:
            part = of_a_protocol(table(both, name), protocol)
            assert len(part)
            assert_frame_equal(part, table(tmp_path / protocol, name))
    assert len(engine.calls) == computed  # all in the store
    groups = table(both, "cells").groupby(stats.GROUP)
    assert len(groups) == 2
    assert all(cells["control"].eq("blank_image").sum() == 1 for _, cells in groups)
    texts = table(both, "samples").pivot(
        index=["method", "control", "ratio", "row"], columns="protocol"
    )
    assert (texts["text", "replay"] != texts["text", "context"]).any()


@pytest.mark.usefixtures("no_report")
def test_what_one_protocol_answered_is_not_asked_again(
    call: Program, engine: FakeEngine, asked: list[str]
) -> None:
    assert call(*asked, "protocol=replay", "run.name=a") == 0
    before = len(engine.calls)
    assert call(*asked, "protocol=both", "run.name=b") == 0
    assert {cell.protocol for cells in engine.calls[before:] for cell in cells} == {"context"}


@pytest.mark.usefixtures("no_report")
def test_prompts_and_kept_tokens_are_told_for_each(
    call: Program, engine: FakeEngine, asked: list[str], tmp_path
) -> None:
    assert call(*asked, "run.name=both") == 0
    for name in ("prompts", "kept"):
        frame = pd.read_parquet(tmp_path / "both" / f"{name}.parquet")
        parts = [of_a_protocol(frame, protocol) for protocol in BOTH]
        assert len(parts[0]) == len(parts[1]) > 0
        rows = [list(part["row"]) for part in parts]
        assert rows[0] == rows[1]


def test_an_observation_window_on_the_question_needs_replay(
    call: Program, asked: list[str], capsys
) -> None:
    assert call(*asked, "method=[snapkv]", "window_anchor=question") == 2
    said = capsys.readouterr().err
    assert "protocol=context reads after the eviction" in said
    assert "protocol=replay" in said


@pytest.mark.parametrize("protocol", ["both", "context"])
def test_prompts_with_nothing_before_their_question_are_refused_before_a_model_loads(
    call: Program, asked: list[str], protocol: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    bare = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    monkeypatch.setattr(Benchmark, "messages", lambda self, position: bare)
    monkeypatch.setattr(collect, "load_engine", None)
    assert call(*asked, f"protocol={protocol}") == 2
    said = capsys.readouterr().err
    assert "task=mmbench_mini has no image, video or marked context before its question" in said
    assert "give protocol=replay" in said


@pytest.mark.usefixtures("no_report")
def test_a_video_is_something_before_the_question(
    call: Program, engine: FakeEngine, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [{"type": "video", "url": "a.mp4"}, {"type": "text", "text": "Why?"}]
    shown = [{"role": "user", "content": parts}]
    monkeypatch.setattr(Benchmark, "messages", lambda self, position: shown)
    assert call(*asked, "protocol=context", "run.name=a") == 0


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ("both", {"protocol": "replay, context", "tail": "last_token"}),
        ("context", {"protocol": "context"}),
    ],
)
def test_the_manifest_says_when_was_evicted(
    call: Program, engine: FakeEngine, asked: list[str], tmp_path, protocol: str, said: dict
) -> None:
    assert call(*asked, f"protocol={protocol}", "run.name=a") == 0
    told = json.loads((tmp_path / "a" / "manifest.json").read_text())["provenance"]["settings"]
    assert {name: told[name] for name in ("protocol", "tail") if name in told} == said
