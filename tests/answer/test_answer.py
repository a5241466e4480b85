import re
from dataclasses import replace

import pandas as pd
import pytest

from harness.report import answer, answer_tables, build
from harness.report.study import Study
from tests.answer.conftest import study_samples
from tests.answer.test_verdicts import FACTORS

WHOLE = {
    ("random", 0.7): 120, ("random", 0.9): 200,
    ("restkv", 0.7): 0, ("restkv", 0.9): 60,
    ("restkv_neither", 0.7): 0, ("restkv_neither", 0.9): 0,
}  # fmt: skip


def study(samples: pd.DataFrame, **manifest: object) -> Study:
    given = {"plan": {"resamples": 199}, "factors": FACTORS, "registered": True, **manifest}
    return build.study(samples, given)


def test_the_verdict_is_two_sentences_by_setting():
    first, second = answer.verdict(study(study_samples(WHOLE)))
    (interval,) = re.findall(r"\[.*?\]", first)
    assert first == (
        "In part: that restkv keeps the score within 2 points of the full cache is supported at "
        "0.7 and not supported at 0.9 (lowest: -20.0 points "
        f"{interval} at 0.9)."
    )
    assert second.startswith("Not supported: that its smoothing is what keeps the score is ")
    assert "not supported at any of the 2 settings (0.7, 0.9)" in second


def test_a_plan_that_was_changed_makes_the_verdict_exploratory():
    samples = study_samples(WHOLE)
    assert answer.verdict(study(samples, registered=False))[0].startswith("Exploratory. In part")
    text = answer.text(study(samples, registered=False, registration="The plan was changed."))
    assert "The plan was changed." in text


def test_a_part_is_one_that_is_supported():
    samples = study_samples({("random", 0.7): 200, ("restkv", 0.7): 6, ("restkv", 0.9): 60})
    first, _ = answer.verdict(study(samples))
    assert first.startswith("Not supported: ")
    assert "not supported at 0.9 and undecided at 0.7" in first


def test_the_lowest_may_be_undecided():
    samples = study_samples({("random", 0.7): 200, ("restkv", 0.7): 0, ("restkv", 0.9): 6})
    assert "lowest: -2.0 points" in answer.verdict(study(samples))[0]


def test_vacuous_protocols_cannot_tell():
    samples = study_samples(WHOLE, exposed_tokens=0)
    first, second = answer.verdict(study(samples))
    assert first.startswith("Cannot tell: ")
    assert second.startswith("Cannot tell: ")
    assert "undecided at each of the 2 settings" in first
    text = answer.text(study(samples))
    assert "cannot answer the question" in text  # under what the data does not say


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ({}, "holds no compressed cell"),
        ({("snapkv", 0.9): 0}, "restkv, which the question is about, was not run"),
        ({("restkv", 0.3): 0}, "at no setting that evicts more than 50 %"),
    ],
)
def test_what_was_not_run_is_said(lost, why):
    one = study(study_samples(lost))
    first, second = answer.verdict(one)
    assert first.startswith("Cannot tell: ")
    assert why in first
    assert "experiment=smoothing" in second
    assert first in answer.text(one).replace("\\", "")


def test_one_method_only_is_judged_and_said_to_have_no_control():
    text = answer.text(study(study_samples({("restkv", 0.9): 0})))
    assert "Cannot tell: that restkv keeps the score" in text
    assert "random was not run to its end" in text
    assert "Cannot tell: that its smoothing" in text


def test_an_inert_contrast_is_read_as_unable_to_tell():
    lost = {(name, 0.9): 30 for name in ("restkv", "restkv_avg", "restkv_nospatial")}
    samples = study_samples(lost, adaptive_active=0.0)
    factors = {
        "restkv": {"temporal": "ema", "spatial": "adaptive"},
        "restkv_avg": {"temporal": "ema", "spatial": "avg"},
        "restkv_nospatial": {"temporal": "ema", "spatial": "none"},
    }
    one = study(samples, factors=factors)
    table = answer_tables.ablation(one.ablation)
    line = next(line for line in table if "adaptive - avg" in line)
    assert "cannot tell: the adaptive window was never at work" in line
    other = next(line for line in table if "avg - none" in line)
    assert "no effect shown" in other


def test_every_figure_of_the_tables_is_that_of_the_frames():
    one = study(study_samples(WHOLE))
    text = answer.text(one).replace("\\", "")
    for _, row in one.comparisons.iterrows():
        numbers = (row["difference"], row["difference_low"], row["difference_high"])
        shown = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(round(100 * v, 1) + 0.0 for v in numbers))
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['method']} |"))
        assert shown in line
    for _, row in one.verdicts.iterrows():
        assert f"**{row['verdict']}**" in text
        assert row["reason"] in text


def test_the_window_weights_are_a_table():
    place = {"model": "tiny", "task": "mini", "protocol": "replay"}
    fell = pd.DataFrame(
        [
            {**place, "method": "restkv", "segment": "question", "share": 0.25},
            {**place, "method": "restkv", "segment": "template", "share": 0.75},
            {**place, "method": "snapkv", "segment": "question", "share": 1.0},
        ]
    )
    text = answer.text(replace(study(study_samples(WHOLE)), weights=fell))
    assert "| method | question | template |" in text
    assert "| restkv | 25.0 | 75.0 |" in text
    assert "| snapkv | 100.0 | 0.0 |" in text


def test_hostile_names_stay_text():
    hostile = "<script>alert(1)</script>|x"
    text = answer.text(study(study_samples(WHOLE), name=hostile, told=(hostile,)))
    assert "<script>" not in text
    assert "\\|x" in text


def test_it_ends_with_the_command_that_reproduces_it():
    one = study(study_samples(WHOLE), provenance={"command": "evictbench limit=3"})
    assert "```\nevictbench limit=3\n```" in answer.text(one)


def test_the_same_study_gives_the_same_text():
    texts = {answer.text(study(study_samples(WHOLE))) for _ in range(2)}
    assert len(texts) == 1
