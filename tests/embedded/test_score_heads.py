"""The importance of the embedded model's heads, measured from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import methods
from methods.importance import load
from scripts import score_heads
from scripts.build_text_mini import SEED


def test_few_heads_of_the_embedded_model_find_what_is_asked(tmp_path: Path) -> None:
    score_heads.main(["--folder", str(tmp_path), "--prompts", "4"])
    told = json.loads((tmp_path / "measured.json").read_text())
    assert told["prompts"] == 4
    assert 2 <= told["answered"] <= 4
    scores = load(str(tmp_path))
    assert scores.shape == (6, 4)
    ranked = scores.flatten().sort(descending=True).values
    assert float(ranked[:5].sum()) > 0.9 * float(ranked.sum())
    policy = methods.build("headkv", importance=str(tmp_path))
    assert methods.build("headkv", **policy.params) == policy


def test_the_benchmarks_own_texts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        score_heads.main(["--folder", "nowhere", "--seed", str(SEED)])
    assert "made the benchmark; take another one" in capsys.readouterr().err
