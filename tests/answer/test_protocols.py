"""A study under two protocols: each is judged by itself, and their scores stand side by side."""

from dataclasses import replace

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from harness.report import answer
from harness.report.headline import headline
from harness.report.protocols import side_by_side
from harness.report.study import Study
from tests.answer.conftest import study_samples
from tests.answer.test_answer import WHOLE, study

LATE = {**WHOLE, ("restkv", 0.7): 30, ("restkv", 0.9): 90}
del LATE["restkv_neither", 0.9]


@pytest.fixture(scope="module")
def parts() -> list[pd.DataFrame]:
    """Samples of each protocol, 300 questions of which the full cache has nine tenths."""
    late = study_samples(LATE).assign(protocol="context")
    return [study_samples(WHOLE), late.assign(cell_key="late-" + late["cell_key"])]


@pytest.fixture(scope="module")
def whole(parts) -> Study:
    return study(pd.concat(parts, ignore_index=True))


def test_the_headline_tells_of_each_protocol(whole):
    assert headline(whole) == (
        "Evicted after the question is read (replay): ReST-KV keeps accuracy (within 2 points) at "
        "70 % eviction and loses 20.0 points at 90 %.",
        "Its smoothing does not help: it costs 20.0 points at 90 % eviction and makes no "
        "difference (within 2 points) at 70 %.",
        "Evicted before the question is read (context): ReST-KV loses 10.0 to 30.0 points of "
        "accuracy at 70 and 90 % eviction.",
        "Its smoothing does not help: it costs 10.0 points at 70 % eviction.",
    )


def test_a_plan_that_was_changed_makes_each_protocol_exploratory(whole):
    said = headline(replace(whole, registered=False))
    assert [one[:22] for one in said[::2]] == ["Exploratory: Evicted a", "Exploratory: Evicted b"]


def test_each_protocol_is_corrected_by_itself(parts, whole):
    for part in parts:
        alone = study(part)
        for name in ("verdicts", "contrasts", "comparisons"):
            every = getattr(whole, name)
            own = every[every["protocol"] == part["protocol"].iloc[0]].reset_index(drop=True)
            assert_frame_equal(own, getattr(alone, name), check_dtype=False)


def test_scores_stand_side_by_side(whole):
    (side,) = side_by_side(whole.cells)
    assert side.header == ["Method", "70 %", "90 %"]
    assert side.body == [  # 270 of 300 are right with the full cache
        ["random", "50.0 → 50.0", "23.3 → 23.3"],
        ["restkv", "90.0 → 80.0", "70.0 → 60.0"],
        ["restkv_neither", "90.0 → 90.0", "90.0 → -"],
    ]
    assert "| restkv_neither | 90.0 → 90.0 | 90.0 → - |" in answer.text(whole)


def test_limits_name_what_they_are_of(parts, whole):
    alone = study(parts[0])
    assert list(side_by_side(alone.cells)) == []
    assert not any(said.startswith("replay: ") for said in answer.limits(alone))
    both = pd.concat(parts, ignore_index=True)
    leads = {said.split(": ")[0] for said in answer.limits(whole)}
    assert {"replay", "context"} <= leads
    other = both.assign(task="second", cell_key="second-" + both["cell_key"])
    tasks = study(pd.concat([both, other], ignore_index=True))
    leads = {said.split(": ")[0] for said in answer.limits(tasks)}
    assert {"mini, replay", "mini, context", "second, replay", "second, context"} <= leads
    assert headline(tasks)[0].startswith("Of 8 settings of task, protocol and eviction, ReST-KV ")


def test_the_first_sentence_of_each_protocol_stands_out(whole):
    for registered in (True, False):
        one = replace(whole, registered=registered)
        said, text = headline(one), answer.text(one)
        assert [each for each in said if f"**{each}**" in text] == list(said[::2])
