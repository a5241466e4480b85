"""Which pairs of a plan are compared, and what a folder may gain without another plan."""

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.settings.config import ContrastConfig
from harness.settings.variants import contrasts, titles, variants
from tests.run.conftest import Program
from tests.run.fakes import FakeEngine

PAIR = ContrastConfig("restkv", "restkv_neither", "smoothing", ["temporal", "spatial"])
RESTKV = {"method": "restkv"}
NEITHER = RESTKV | {"temporal": "mean", "spatial": "none"}


def active(chosen: dict, *pairs: ContrastConfig) -> tuple[list[str], list[str]]:
    found, told = contrasts(variants(chosen, {}), pairs or [PAIR])
    return [f"{pair.label} {pair.against}" for pair in found], told


def test_a_pair_is_compared_where_both_are_chosen() -> None:
    both = {"restkv": RESTKV, "restkv_neither": NEITHER}
    assert active(both) == (["restkv restkv_neither"], [])
    assert active({"restkv": RESTKV}) == ([], [])
    assert active({"restkv_neither": NEITHER}) == ([], [])


def test_a_pair_that_differs_in_more_is_left_out_and_told() -> None:
    other = NEITHER | {"window": 16, "alpha": 0.5}
    found, (said,) = active({"restkv": RESTKV, "restkv_neither": other})
    assert found == []
    assert "What smoothing does is not told" in said
    assert "differ in alpha, window as well" in said


def test_two_methods_are_a_pair_where_that_is_said() -> None:
    chosen = {"restkv": RESTKV, "snapkv": {"method": "snapkv"}}
    found, (said,) = active(chosen, ContrastConfig("restkv", "snapkv", "it", ["window"]))
    assert found == []
    assert "differ in method as well" in said
    pair = ContrastConfig("restkv", "snapkv", "it", ["method"])
    assert active(chosen, pair) == (["restkv snapkv"], [])


def test_methods_are_written_as_their_papers_do() -> None:
    chosen = variants(
        {"restkv": RESTKV, "mine": {"method": "h2o"}, "h2o": {"method": "h2o", "recent": 3}}, {}
    )
    assert titles(chosen) == {"restkv": "ReST-KV", "h2o": "H2O"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("[{label: restkv}]", "analysis.contrasts[0] has no against"),
        ("[{label: restkv, against: nope, called: x}]", "compares nope, which is no method"),
        ("[{label: restkv, against: restkv, called: x}]", "compares restkv with itself"),
        (
            "[{label: h2o, against: tova, called: x},{label: h2o, against: tova, called: y}]",
            "compares h2o with tova once more",
        ),
        (
            "[{label: h2o, against: tova, called: x, vary: [window]}]",
            "label, against, called, varies",
        ),
        ("[{label: h2o, against: tova, called: x, asks: 'Is {metod} fine?'}]", "has {metod}"),
    ],
)
def test_a_wrong_contrast_is_one_sentence(
    call: Program, overrides: list[str], capsys: pytest.CaptureFixture[str], typed: str, said: str
) -> None:
    assert call(*overrides, f"analysis.contrasts={typed}") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_run_writes_its_contrasts_and_may_gain_one(
    call: Program, overrides: list[str], engine: FakeEngine, tmp_path: Path
) -> None:
    more = [one for one in overrides if not one.startswith("method=")]
    assert call(*more, "method=[random,restkv]") == 0
    assert len(pd.read_parquet(tmp_path / "run" / "contrasts.parquet")) == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["settings"]["contrasts"] == []
    assert call(*more, "method=[random,restkv,restkv_neither]") == 0
    found = pd.read_parquet(tmp_path / "run" / "contrasts.parquet")
    assert list(found["ratio"]) == [0.9]
    assert found["label"].eq("restkv").all()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [pair["against"] for pair in manifest["plan"]["contrasts"]] == ["restkv_neither"]
    assert manifest["registered"]  # more methods are no other plan
    assert manifest["titles"] == {"random": "random eviction", "restkv": "ReST-KV"}


@pytest.mark.parametrize(
    "experiment",
    [
        "decoding",
        "paper_protocol",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("smoothing", "budgets", "boundary")),
    ],
)
def test_every_experiment_asks_its_own_question(
    call: Program, overrides: list[str], engine: FakeEngine, tmp_path: Path, experiment: str
) -> None:
    more = [one for one in overrides if not one.startswith(("method=", "ratios="))]
    assert call(*more, f"experiment={experiment}", "ratios=[0.9]", "limit=3") == 0
    text = (tmp_path / "run" / "answer.md").read_text()
    asked = {
        "smoothing": "spatial-temporal smoothing keep",
        "budgets": "share the kept tokens unevenly",
        "boundary": "keep both ends of the prompt",
        "decoding": "hold the cache's budget while it generates",
        "paper_protocol": "if tiny_vlm's cache is evicted after the prompt",
    }
    assert asked[experiment] in text.splitlines()[0]
    for name in asked.keys() - {experiment}:
        assert asked[name] not in text
    assert ("smoothing does" in text) == (experiment == "smoothing")
