import pandas as pd
import pytest

from harness import stats
from harness.report import build, verdicts
from harness.report.verdicts import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED
from harness.stats.plan import Plan
from tests.answer.conftest import full, rows, study_samples

PLAN = Plan(resamples=199)
FACTORS = {
    "restkv": {"temporal": "ema", "spatial": "adaptive"},
    "restkv_neither": {"temporal": "mean", "spatial": "none"},
}


def decide(samples: pd.DataFrame, plan: Plan = PLAN) -> pd.DataFrame:
    return build.study(samples, {"plan": vars(plan), "factors": FACTORS}).verdicts


def one(samples: pd.DataFrame, plan: Plan = PLAN) -> pd.Series:
    table = decide(samples, plan)
    assert len(table) == 1
    return table.iloc[0]


@pytest.mark.parametrize(
    ("lost", "control", "verdict", "word"),
    [
        (0, 100, SUPPORTED, "loses less than 2 points"),
        (1, 100, SUPPORTED, "loses less than 2 points"),
        (40, 200, NOT_SUPPORTED, "loses more than the margin"),
        (40, 0, NOT_SUPPORTED, "loses more than the margin"),
        (6, 100, CANNOT_TELL, "Neither a loss of more than 2 points nor its absence"),
        (0, 0, CANNOT_TELL, "Not even random is shown to lose more than 2 points"),
        (1, 3, CANNOT_TELL, "Not even random is shown to lose more than 2 points"),
    ],
)
def test_a_known_loss_gets_its_verdict(lost, control, verdict, word):
    row = one(study_samples({("random", 0.9): control, ("restkv", 0.9): lost}))
    assert row["verdict"] == verdict
    assert word in row["reason"]
    assert row["difference"] == pytest.approx(-lost / 300)


def test_the_margin_and_the_threshold_are_those_of_the_plan():
    samples = study_samples(
        {
            ("random", 0.5): 150,
            ("random", 0.9): 150,
            ("restkv", 0.5): 0,
            ("restkv", 0.9): 9,
            ("restkv", 0.95): 150,
        }
    )
    assert decide(samples)["ratio"].tolist() == [0.9, 0.95]
    wide = decide(samples, Plan(margin=0.1, above=0.0, resamples=199))
    assert wide["ratio"].tolist() == [0.5, 0.9, 0.95]
    assert wide["verdict"].tolist() == [SUPPORTED, SUPPORTED, NOT_SUPPORTED]
    assert "10 points" in wide["reason"].iloc[0]


def test_too_few_questions_cannot_tell_and_say_how_many_would():
    samples = study_samples({("random", 0.9): 20, ("restkv", 0.9): 1}, questions=40)
    row = one(samples)
    assert row["verdict"] == CANNOT_TELL
    needed = stats.compare(samples, PLAN).set_index("method").loc["restkv", "questions_needed"]
    assert f"about {needed:,} questions" in row["reason"]
    assert "40 were asked" in row["reason"]
    assert row["reason"].startswith("40 questions are too few; 149 would do to exclude a loss of 2")


@pytest.mark.parametrize(
    ("questions", "lost", "verdict"),
    [(3, 3, CANNOT_TELL), (5, 5, CANNOT_TELL), (12, 12, NOT_SUPPORTED), (148, 0, CANNOT_TELL),
     (149, 0, SUPPORTED)],
)  # fmt: skip
def test_verdict_and_interval_agree_at_few_questions(questions, lost, verdict):
    samples = study_samples(
        {("random", 0.9): questions, ("restkv", 0.9): lost}, questions=questions
    )
    row = one(samples[samples["control"] != "blank_image"])
    assert row["verdict"] == verdict
    assert (row["difference_high"] < -PLAN.margin) == (verdict == NOT_SUPPORTED)
    assert ("too few" in row["reason"]) == (verdict == CANNOT_TELL)


def test_a_loss_is_not_shown_while_the_interval_holds_values_inside_the_margin():
    """The bounds are one-sided at a level of their own; the interval that is stated is 95 %."""
    samples = study_samples({("random", 0.9): 150, ("restkv", 0.9): 13})
    compared = stats.compare(samples, PLAN).set_index("method").loc["restkv"]
    assert compared["upper"] < -PLAN.margin < compared["difference_high"]
    assert one(samples)["verdict"] == CANNOT_TELL


def test_what_is_equivalent_is_told_from_what_may_be_better():
    plan = Plan(margin=0.1, resamples=199)
    same = study_samples({("random", 0.9): 150, ("restkv", 0.9): 0})
    assert "; equivalent within 10 points; random" in decide(same, plan)["reason"].iloc[0]
    worse = same["method"].eq("full") & same["row"].lt(60) & same["control"].eq("none")
    better = same.assign(correct=same["correct"] & ~worse)
    assert "; kept, and possibly better; random" in decide(better, plan)["reason"].iloc[0]


def test_a_vacuous_cell_cannot_tell_whatever_its_score():
    lost = dict.fromkeys([(name, 0.9) for name in ("random", "restkv", "restkv_neither")], 0)
    row = one(study_samples(lost, exposed_tokens=0))
    assert row["verdict"] == row["smoothing"] == CANNOT_TELL
    assert row["reason"].startswith("Vacuous")
    assert row["smoothing_reason"] == row["reason"]


def test_without_a_full_cache_nothing_is_compared():
    samples = study_samples({("random", 0.9): 100, ("restkv", 0.9): 0})
    row = one(samples[samples["method"] != "full"])
    assert row["verdict"] == CANNOT_TELL
    assert "full cache was not run" in row["reason"]


def test_missing_rows_cannot_tell():
    samples = study_samples({("random", 0.9): 100, ("restkv", 0.9): 0})
    short = samples[~((samples["method"] == "restkv") & (samples["row"] > 500))]
    row = one(short)
    assert row["verdict"] == CANNOT_TELL
    assert "Only 501 of the 600 rows" in row["reason"]


def test_a_blind_model_cannot_tell():
    samples = study_samples({("random", 0.9): 100, ("restkv", 0.9): 0})
    samples = samples[samples["method"] != "blank_image"]
    blank = rows(full(), "blank_image", control="blank_image")
    row = one(pd.concat([samples, blank], ignore_index=True))
    assert row["verdict"] == CANNOT_TELL
    assert "does not demonstrably use the image" in row["reason"]


def test_a_model_that_knows_nothing_cannot_tell():
    samples = study_samples({("random", 0.9): 100, ("restkv", 0.9): 0})
    samples.loc[samples["method"].isin(["full", "restkv", "random"]), "correct"] = False
    row = one(samples[samples["method"] != "blank_image"])
    assert row["verdict"] == CANNOT_TELL
    assert "next to nothing to lose" in row["reason"]


def test_secret_answers_cannot_tell():
    samples = study_samples({("restkv", 0.9): 0}).assign(score=float("nan"))
    row = one(samples)
    assert row["verdict"] == CANNOT_TELL
    assert "secret" in row["reason"]


def test_without_a_control_it_cannot_tell():
    row = one(study_samples({("restkv", 0.9): 0}))
    assert row["verdict"] == CANNOT_TELL
    assert "random was not run to its end" in row["reason"]


def test_controls_of_another_setting_or_with_rows_missing_do_not_count():
    samples = study_samples({("random", 0.5): 100, ("restkv", 0.9): 0})
    assert "random was not run to its end" in one(samples)["reason"]
    samples = study_samples({("random", 0.9): 100, ("restkv", 0.9): 0})
    short = samples[~((samples["method"] == "random") & (samples["row"] > 500))]
    assert "random was not run to its end" in one(short)["reason"]


def test_smoothing_cannot_keep_what_is_not_kept():
    lost = {("random", 0.9): 200, ("restkv", 0.9): 60, ("restkv_neither", 0.9): 150}
    row = one(study_samples(lost))
    assert row["verdict"] == row["smoothing"] == NOT_SUPPORTED
    assert "raises the score" in row["smoothing_reason"]
    assert "not shown to be kept" in row["smoothing_reason"]


def test_a_gain_within_the_margin_keeps_nothing():
    lost = {("random", 0.9): 500, ("restkv", 0.9): 0, ("restkv_neither", 0.9): 8}
    row = one(study_samples(lost, questions=1000))
    assert row["gain_low"] > 0
    assert row["smoothing"] == NOT_SUPPORTED
    assert "no difference within 2 points" in row["smoothing_reason"]


def test_the_smoothing_of_another_method_says_nothing():
    lost = {("random", 0.9): 150, ("restkv", 0.9): 0, ("restkv_neither", 0.9): 60}
    samples = study_samples({**lost, ("snapkv", 0.9): 0})
    row = one(samples, Plan(method="snapkv", resamples=199))
    assert row["verdict"] == SUPPORTED
    assert pd.isna(row["smoothing"])
    assert pd.isna(row["smoothing_reason"])


@pytest.mark.parametrize(
    ("kept", "neither", "smoothing", "word"),
    [
        (0, 60, SUPPORTED, "raises the score"),
        (60, 0, NOT_SUPPORTED, "lowers the score"),
        (1, 1, NOT_SUPPORTED, "no difference within 2 points"),
        (5, 3, CANNOT_TELL, "may raise or lower"),
    ],
)
def test_the_smoothing_is_judged_against_the_variant_without(kept, neither, smoothing, word):
    lost = {("random", 0.9): 150, ("restkv", 0.9): kept, ("restkv_neither", 0.9): neither}
    row = one(study_samples(lost))
    assert row["smoothing"] == smoothing
    assert word in row["smoothing_reason"]
    assert row["gain"] == pytest.approx((neither - kept) / 300)


def test_an_inert_window_cannot_tell_about_its_part():
    lost = {("random", 0.9): 150, ("restkv", 0.9): 0, ("restkv_neither", 0.9): 60}
    inert = one(study_samples(lost, adaptive_active=0.0))
    assert "cannot tell about that part" in inert["smoothing_reason"]
    active = one(study_samples(lost, adaptive_active=0.3))
    assert "cannot tell" not in active["smoothing_reason"]


def test_without_the_variant_the_smoothing_cannot_be_judged():
    row = one(study_samples({("random", 0.9): 150, ("restkv", 0.9): 0}))
    assert row["smoothing"] == CANNOT_TELL
    assert "restkv and restkv_neither were not both run" in row["smoothing_reason"]


def test_holm_counts_the_settings_of_the_plan():
    """A p value that one setting may have is too large for the second of four."""
    single = study_samples({("random", 0.9): 150, ("restkv", 0.9): 1})
    row = one(single)
    p = stats.compare(single, PLAN).set_index("method").loc["restkv", "p_noninferior"]
    assert p < PLAN.alpha < 4 * p
    assert row["verdict"] == SUPPORTED
    places = (0.6, 0.7, 0.8, 0.9)
    several = {("random", place): 150 for place in places} | {("restkv", p): 1 for p in places}
    table = decide(study_samples(several))
    assert set(table["verdict"]) == {CANNOT_TELL}
    assert table["reason"].str.contains("not after Holm's correction").all()


def test_budgets_and_several_tasks_are_judged_apart():
    samples = study_samples({("random", 0.0): 150, ("restkv", 0.0): 0}, budget=10)
    samples["ratio"] = samples["ratio"].where(samples["budget"].isna())
    other = samples.assign(task="second", cell_key=samples["cell_key"] + "second")
    other.loc[other["method"] == "restkv", "correct"] = False
    table = decide(pd.concat([samples, other], ignore_index=True))
    assert table["budget"].tolist() == [10, 10]
    assert table["ratio"].isna().all()
    assert table["verdict"].tolist() == [SUPPORTED, NOT_SUPPORTED]


def test_a_run_without_the_method_has_no_rows():
    table = decide(study_samples({("random", 0.9): 10, ("snapkv", 0.9): 0}))
    assert table.empty
    assert table.columns.tolist() == verdicts.COLUMNS
