"""The benchmark of shared prefixes compares equal answers and counts prefills."""

import pytest

from harness.embedded import TINY_VLM
from harness.engine import Protocol
from harness.models import loading
from scripts import bench_prefixes as bench
from scripts.bench_branching import branches


@pytest.fixture(scope="module")
def loaded():
    return loading.load(str(TINY_VLM), device="cpu")


def test_rotations_of_a_question_cost_less_than_their_prefills(loaded):
    prompts = bench.rotations(loaded, pictures=5)
    assert len({tuple(one.inputs["input_ids"][0].tolist()) for one in prompts}) == 4
    assert len({one.context for one in prompts}) == 1
    found = bench.compared(
        loaded,
        Protocol("replay"),
        prompts,
        branches(("snapkv", "h2o"), (0.5,)),
        rounds=1,
        apart=True,
    )
    assert (found["prompts"], found["cells"]) == (4, 3)
    assert found["prefills_of_one_prompt"] < 3
    assert found["times_faster_than_one_by_one"] > found["times_faster"]


def test_a_differing_answer_ends_the_benchmark(loaded, monkeypatch):
    prompts = bench.questions(loaded, tokens=60, count=2, each=5)
    assert prompts[0].context == 60
    honest, calls = bench.answers, []

    def other(*args):
        calls.append(args)
        spent, filled, found = honest(*args)
        return spent, filled, found[: len(calls)]

    monkeypatch.setattr(bench, "answers", other)
    with pytest.raises(SystemExit, match="an answer differs"):
        bench.compared(loaded, Protocol("context"), prompts, branches((), ()), rounds=1)
