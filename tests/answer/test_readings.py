"""Verdicts under both readings of the same answers."""

import numpy as np
import pandas as pd
import pytest

from harness import stats
from harness.report import build, files
from harness.report.headline import headline
from tests.answer.conftest import QUESTIONS, study_samples

LOST = {("restkv", 0.9): 0, ("random", 0.9): 150}


def chance(samples, method="restkv", share=2):
    """Samples whose permissive reading finds a letter in text that the strict one cannot read: the
    method destroys every answer, and every `share`-th question is lost by the strict reading alone.
    """
    destroyed = samples["method"].eq(method) & (samples["question_id"] % share == 0)
    strict = samples["correct"] & ~destroyed
    return samples.assign(
        extraction="lmms_eval", score=samples["correct"].astype(float),
        score_other=strict.astype(float), unparsed_other=destroyed,
        parsed_other=samples["parsed"].where(~destroyed, None),
    )  # fmt: skip


def study(samples, **manifest):
    return build.study(samples, {"plan": {"resamples": 199}, "registered": True, **manifest})


def test_a_verdict_that_hangs_on_the_reading_says_so(tmp_path):
    found = study(chance(study_samples(LOST)))
    (row,) = found.verdicts.to_dict("records")
    assert (row["verdict"], row["verdict_other"]) == ("supported", "not supported")
    said = "Read by extraction=strict it is lost: -4"
    assert said in row["reason"]
    kept, otherwise = headline(found)
    assert "keeps accuracy" in kept
    assert otherwise == "Read by extraction=strict it comes out otherwise: lost at 90 % eviction."
    cells = found.cells.set_index("method")
    assert cells.loc["restkv", "unparsed_rate"] == 0
    assert cells.loc["restkv", "unparsed_rate_other"] == pytest.approx(0.5)
    assert cells.loc["random", "unparsed_rate_other"] == 0
    files.write(found, tmp_path)
    for name in ("answer.md", "report.html"):
        assert said in (tmp_path / name).read_text(encoding="utf-8")
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "unparsed %, other reading" in summary
    assert "| restkv | 0.9 |" in summary


def test_the_second_verdict_is_that_of_a_run_by_the_other_reading():
    samples = chance(study_samples(LOST))
    other = samples.assign(
        score=samples["score_other"], correct=samples["score_other"].eq(1),
        parsed=samples["parsed_other"], unparsed=samples["unparsed_other"],
        score_other=samples["score"], extraction="strict",
    )  # fmt: skip
    ours, theirs = study(samples).verdicts, study(other).verdicts
    assert list(ours["verdict_other"]) == list(theirs["verdict"])
    assert list(theirs["verdict_other"]) == list(ours["verdict"])
    assert "Read by extraction=lmms_eval it is kept" in theirs["reason"].iloc[0]


def test_where_both_readings_agree_nothing_is_said():
    found = study(chance(study_samples(LOST), share=10**6 * QUESTIONS))
    assert list(found.verdicts["verdict_other"]) == list(found.verdicts["verdict"])
    assert not found.verdicts["reason"].str.contains("Read by").any()
    assert "Read by" not in " ".join(headline(found))


def test_where_both_readings_are_equal_the_second_verdict_is_the_first(monkeypatch):
    samples = chance(study_samples(LOST))
    samples = samples.assign(score_other=samples["score"])
    summarised = []
    plain = stats.summarise
    monkeypatch.setattr(stats, "summarise", lambda one: summarised.append(1) or plain(one))
    found = study(samples).verdicts
    assert len(summarised) == 1  # the second reading costs nothing
    assert list(found["verdict_other"]) == list(found["verdict"]) == ["supported"]


def test_a_task_with_one_reading_has_no_second_verdict(tmp_path):
    samples = study_samples(LOST)
    samples = samples.assign(score=samples["correct"].astype(float), score_other=np.nan)
    found = study(samples)
    assert found.verdicts["verdict_other"].isna().all()
    assert found.cells["unparsed_rate_other"].isna().all()
    assert stats.other_reading(samples) is None
    files.write(found, tmp_path)
    assert "other reading" not in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_of_several_tasks_those_with_a_second_reading_are_read_twice():
    one = chance(study_samples(LOST))
    two = study_samples(LOST).assign(task="longbench_x", extraction=None)
    found = study(pd.concat([one, two], ignore_index=True))
    assert list(found.verdicts["verdict_other"].fillna("none")) == ["not supported", "none"]
    _, otherwise = headline(found)
    assert "comes out otherwise: lost in 1 of 2 settings." in otherwise


def test_a_failed_row_fails_in_both_readings():
    samples = chance(study_samples(LOST))
    failed = samples["method"].eq("restkv") & samples["row"].eq(3)
    samples.loc[failed, "score"] = np.nan
    other = stats.other_reading(samples)
    assert other.loc[failed, "score"].isna().all()
    assert not other.loc[failed, "correct"].any()
    assert study(samples).verdicts["verdict_other"].tolist() == ["cannot tell"]


def test_a_contrast_that_hangs_on_the_reading_says_so():
    lost = LOST | {("restkv_neither", 0.9): 0}
    found = study(chance(study_samples(lost), method="restkv_neither", share=3))
    assert found.contrasts["effect"].tolist() == ["no difference"]
    assert found.contrasts["effect_other"].tolist() == ["helps"]
    assert headline(found)[-1] == (
        "Read by extraction=strict its smoothing comes out otherwise: helps at 90 % eviction."
    )
