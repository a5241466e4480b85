"""The benchmark of the branching engine compares like with like and refuses to time nonsense."""

from dataclasses import replace

import pytest

from harness.embedded import TINY_VLM
from harness.engine import Engine
from harness.models import loading
from scripts import bench_branching as bench


@pytest.fixture(scope="module")
def engine():
    return Engine(loading.load(str(TINY_VLM), device="cpu"))


def test_both_ways_are_timed_and_give_the_same_answers(engine):
    cells = bench.branches(("snapkv", "random"), (0.5, 0.9))
    head = bench.compare(engine, bench.prompts(engine.loaded, 2), cells)
    assert head["cells"] == 5
    assert head["same_answers"] == 10
    assert head["speedup_median"] > 1
    assert head["largest_logit_gap"] < 1e-3
    assert "5 cells x 2 questions" in bench.head_line(head)


def test_a_differing_answer_ends_the_benchmark(engine, monkeypatch):
    honest = bench.one_by_one
    monkeypatch.setattr(
        bench, "one_by_one", lambda *a: [replace(r, text=r.text + "!") for r in honest(*a)]
    )
    with pytest.raises(SystemExit, match="in the batch"):
        bench.compare(engine, bench.prompts(engine.loaded, 1), bench.branches((), ()))


def test_long_prompts_are_as_long_as_asked(engine):
    for wanted in (128, 512):
        item = bench.long_prompt(engine.loaded, wanted)
        assert abs(item.inputs["input_ids"].shape[1] - wanted) < 16
        unknown = engine.loaded.tokenizer.unk_token_id
        assert not (item.inputs["input_ids"] == unknown).any()
