"""The comparisons table against numbers worked out by hand and against its own parts."""

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from statsmodels.stats.multitest import multipletests

from harness import stats
from harness.stats.comparisons import changed_questions, holm
from harness.stats.paired import paired
from harness.stats.power import detectable_loss, questions_least, questions_needed
from harness.stats.resampling import ratio_intervals
from tests.outputs.conftest import cell_rows, sweep

# Two questions of two rotations and one of one.
INDEX = [5, 1_000_005, 6, 1_000_006, 9]
QUESTION = np.array([5, 5, 6, 6, 9])
PLAN = stats.Plan(resamples=199)
PAIRED = [
    "difference", "difference_low", "difference_high", "bootstrap_low", "bootstrap_high", "lower",
    "upper", "p_noninferior", "p_noninferior_holm", "p_equivalent", "p_equivalent_holm", "lost",
    "gained", "p_mcnemar", "p_mcnemar_holm", "detectable", "questions_least", "questions_needed",
    "retained", "retained_low", "retained_high",
]  # fmt: skip
CHANGES = ["flip_rate", "flip_low", "flip_high"]
KL = ["kl", "kl_low", "kl_high"]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def small(**columns: object) -> pd.DataFrame:
    """The full cache, a blank image and one cell on five rows."""
    return pd.concat(
        [
            cell_rows("full", [1, 1, 1, 0, 1], index=INDEX),
            cell_rows("full", [0, 1, 0, 0, 0], index=INDEX, control="blank_image"),
            cell_rows("restkv", [1, 0, 0, 1, 0], index=INDEX, ratio=0.9),
        ]
    ).assign(**columns)


def only(samples: pd.DataFrame, plan: stats.Plan = PLAN) -> pd.Series:
    table = stats.compare(samples, plan)
    assert list(table.columns) == stats.COMPARISON_COLUMNS
    assert len(table) == 1
    return table.iloc[0]


def test_a_cell_by_hand():
    row = only(small(adaptive_active=0.25))
    assert (row["n_questions"], row["n_rows"], row["complete"]) == (3, 5, True)
    assert row["evicted"] == pytest.approx(90 / 101)
    assert (row["vacuous"], row["adaptive_active"]) == (False, 0.25)
    got = row[["accuracy", "full_accuracy", "blank_accuracy", "difference"]].astype(float)
    assert got.tolist() == pytest.approx([0.4, 0.8, 0.2, -0.4])
    assert row["retained"] == pytest.approx((0.4 - 0.2) / (0.8 - 0.2))
    assert row["flip_rate"] == pytest.approx(4 / 5)
    # The full cache has questions 5 and 9 right in all rotations, the cell has none.
    assert (row["lost"], row["gained"], row["p_mcnemar"]) == (2, 0, 0.5)
    assert row["family"]
    assert row["p_mcnemar_holm"] == 0.5
    assert row["p_noninferior_holm"] == row["p_noninferior"]


def test_intervals_are_those_of_the_parts():
    row = only(small())
    changes = np.array([0.0, -1, -1, 1, -1])
    found = paired(changes, QUESTION)
    assert (row["difference_low"], row["difference_high"]) == found.interval(0.95)
    assert (row["lower"], row["upper"]) == (found.lower(0.05), found.upper(0.05))
    assert row["p_noninferior"] == found.p_above(-PLAN.margin)
    detectable = detectable_loss(found, PLAN.alpha, PLAN.power)
    assert row["detectable"] == pytest.approx(detectable, nan_ok=True)
    assert row["p_equivalent"] == row["p_equivalent_holm"] == found.p_equivalent(PLAN.margin)
    assert row["questions_least"] == questions_least(found, 0.02, PLAN.alpha)
    assert row["questions_needed"] == questions_needed(found, 0.02, PLAN.alpha, PLAN.power)
    flips = stats.accuracy_interval(pd.Series(np.abs(changes)), pd.Series(QUESTION))
    assert (row["flip_low"], row["flip_high"]) == flips
    limits = ratio_intervals(changes[None], np.ones((1, 5)), QUESTION, 199, 0)[0]
    assert row[["bootstrap_low", "bootstrap_high"]].tolist() == pytest.approx(limits)


def test_the_plan_is_followed():
    samples = sweep(questions=40)
    base = stats.compare(samples, PLAN).query("method == 'restkv'").iloc[1]
    strict = stats.Plan(alpha=0.01, margin=0.1, power=0.9, resamples=199, method="snapkv", seed=1)
    other = stats.compare(samples, strict).query("method == 'restkv'").iloc[1]
    assert other["lower"] < base["lower"] < base["upper"] < other["upper"]
    assert other["p_noninferior"] < base["p_noninferior"]
    assert other["detectable"] > base["detectable"]
    assert other["questions_needed"] < base["questions_needed"]
    assert other["bootstrap_low"] != base["bootstrap_low"]
    assert base["family"]
    assert not other["family"]
    assert other["difference_low"] == base["difference_low"]


def test_divergence_over_rows_with_options():
    def logits(gap: float) -> str:
        return json.dumps({"A": gap, "B": 0.0})

    samples = small()
    samples["letter_logits"] = "{}"
    samples.loc[samples["method"].eq("full"), "letter_logits"] = logits(2.0)
    cell = [logits(2.0), logits(1.0), logits(-1.0), "{}", json.dumps({"A": 1.0, "C": 0.0})]
    samples.loc[samples["method"].eq("restkv"), "letter_logits"] = cell
    p = 1 / (1 + math.exp(-2))

    def kl(gap: float) -> float:
        q = 1 / (1 + math.exp(-gap))
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    row = only(samples)
    assert row["kl"] == pytest.approx((kl(1.0) + kl(-1.0)) / 3)
    assert 0 <= row["kl_low"] < row["kl"] < row["kl_high"] < kl(-1.0) + 1e-9


def test_mcnemar_on_published_counts():
    """Fagerland, Lydersen and Laake (2017), chapter 8: exact conditional tests."""
    for lost, gained, p in ((7, 1, 0.0703), (16, 6, 0.0525)):
        cell = pd.Series([0.0] * lost + [1.0] * gained + [1.0] * 10 + [np.nan, 0.0])
        full = pd.Series([1.0] * lost + [0.0] * gained + [1.0] * 10 + [1.0, np.nan])
        found = changed_questions(cell, full)
        assert (found["lost"], found["gained"]) == (lost, gained)
        assert found["p_mcnemar"] == pytest.approx(p, abs=5e-5)
        both = 2 * binom.cdf(min(lost, gained), lost + gained, 0.5)
        assert found["p_mcnemar"] == pytest.approx(both)
    same = changed_questions(pd.Series([1.0, 0.0]), pd.Series([1.0, 0.0]))
    assert same == {"lost": 0, "gained": 0, "p_mcnemar": 1.0}


def test_holm_by_hand_and_inside_the_family_only():
    values = pd.Series([0.01, 0.04, 0.03, 0.005, np.nan, 0.001])
    family = pd.Series([True, True, True, True, True, False])
    got = holm(values, family)
    assert got[:4].tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert got[4:].isna().all()
    assert holm(values, family & False).isna().all()


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_holm_is_that_of_statsmodels(count: int):
    values = pd.Series(np.random.default_rng(count).beta(0.3, 3, count).round(2))  # with ties
    wanted = multipletests(values, method="holm")[1]
    assert holm(values, values.notna()).tolist() == pytest.approx(wanted.tolist(), rel=1e-12)


def test_the_family_is_the_method_above_the_share_in_each_group():
    samples = sweep(ratios=(0.3, 0.5, 0.6, 0.9), questions=40)
    other = sweep(methods=["restkv"], ratios=(0.9,), questions=40, seed=1).assign(task="other")
    vacuous = sweep(methods=["restkv"], seed=2, exposed_tokens=0).assign(task="vacuous")
    table = stats.compare(pd.concat([samples, other, vacuous]), PLAN)
    family = table[table["family"]]
    # 0.5 of 101 tokens keeps 51, which is less than half evicted.
    assert family[["task", "method", "ratio"]].to_numpy().tolist() == [
        ["mini", "restkv", 0.6], ["mini", "restkv", 0.9], ["other", "restkv", 0.9],
    ]  # fmt: skip
    for name in ("p_noninferior", "p_equivalent", "p_mcnemar"):
        assert table.loc[~table["family"], f"{name}_holm"].isna().all()
        first, second, alone = family[name]
        worse = max(first, second)
        want = [max(min(1, 2 * p) if p < worse else p, min(1, 2 * min(first, second)))
                for p in (first, second)]  # fmt: skip
        assert family[f"{name}_holm"].tolist() == pytest.approx([*want, alone])


def test_a_group_is_the_same_beside_others_and_in_any_order():
    samples = sweep(questions=20)
    other = sweep(methods=["h2o"], seed=5).assign(task="another")
    both = pd.concat([samples, other]).sample(frac=1, random_state=0)
    table = stats.compare(both, PLAN)
    for name, rows in table.groupby("task"):
        alone = stats.compare(both[both["task"] == name], PLAN)
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), alone)
    cells = stats.summarise(both)
    methods = cells[stats.roles(cells).eq("method")].reset_index(drop=True)
    shared = [*stats.CELL, "n_rows", "accuracy", "flip_rate"]
    shared.remove("control")
    pd.testing.assert_frame_equal(table[shared], methods[shared])


def test_rows_that_only_one_side_has_are_left_out():
    whole = small()
    part = whole[~(whole["method"].eq("full") & whole["row"].eq(1))]
    part = part[~(part["method"].eq("restkv") & part["row"].eq(4))]
    row = only(part)
    assert not row["complete"]
    assert row["n_rows"] == 4
    found = paired(np.array([0.0, -1, 1]), np.array([5, 6, 6]))
    assert row["difference"] == found.difference
    assert (row["difference_low"], row["difference_high"]) == found.interval()
    assert row["flip_rate"] == pytest.approx(2 / 3)
    # Question 5 lacks a rotation in the full cache and 9 its only one in the cell.
    assert (row["lost"], row["gained"], row["p_mcnemar"]) == (0, 0, 1.0)
    more = pd.concat([whole, cell_rows("h2o", [1] * 6, index=[*INDEX, 10], ratio=0.5)])
    assert stats.compare(more, PLAN)["complete"].tolist() == [True, True]


def test_nothing_is_said_without_a_full_cache():
    samples = sweep()
    row = stats.compare(samples[samples["method"] != "full"], PLAN)
    assert row[[*PAIRED, *CHANGES, *KL, "full_accuracy"]].isna().all(axis=None)
    assert row["complete"].all()
    assert not row["family"].any()
    gone = samples["row"].eq(3) & samples["method"].eq("restkv")
    part = stats.compare(samples[(samples["method"] != "full") & ~gone], PLAN)
    assert part["complete"].tolist() == part["method"].ne("restkv").tolist()


def test_secret_answers_leave_only_what_needs_no_score():
    logits = ['{"A": 1, "B": 0}', '{"A": 0, "B": 0}'] * 7 + ['{"A": 2, "B": 0}']
    row = only(small(score=np.nan, letter_logits=logits))
    assert row[[*PAIRED, "accuracy", "full_accuracy"]].isna().all()
    assert row[[*CHANGES, *KL]].notna().all()
    assert row["complete"]
    assert row["family"]
    half = small()
    half["score"] = half["correct"].astype(float)
    half.loc[half["method"].eq("restkv") & half["row"].eq(2), "score"] = np.nan
    assert only(half)[PAIRED].isna().all()


def test_without_a_blank_image_or_room_above_it_nothing_is_retained():
    samples = small()
    names = ["retained", "retained_low", "retained_high"]
    row = only(samples[samples["control"] == "none"])
    assert row[[*names, "blank_accuracy"]].isna().all()
    assert row[["difference", "bootstrap_low"]].notna().all()
    right = samples["correct"] | samples["control"].eq("blank_image")
    row = only(samples.assign(correct=right))
    assert row["blank_accuracy"] == 1
    assert row[names].isna().all()


def test_retained_and_its_interval_on_many_questions():
    samples = sweep(methods=["restkv"], ratios=[0.9], questions=80)
    row = only(samples)
    part = (row["accuracy"] - row["blank_accuracy"]) / (
        row["full_accuracy"] - row["blank_accuracy"]
    )
    assert row["retained"] == pytest.approx(part)
    assert row["retained_low"] < part < row["retained_high"]
    same = samples[samples["method"].eq("full")].assign(method="restkv", ratio=0.9, cell_key="s")
    row = only(pd.concat([samples[samples["method"] != "restkv"], same]))
    assert row[["retained", "retained_low", "retained_high"]].tolist() == pytest.approx([1, 1, 1])


def test_graded_scores_and_no_letters():
    samples = sweep(methods=["restkv"], ratios=[0.9], questions=40, rotations=1, parsed=None)
    samples = samples.drop(columns=["letter_logits", "index", "question_id"])
    score = np.random.default_rng(0).random(len(samples))
    row = only(samples.assign(score=score, metric="rouge", parsed=None))
    full = score[samples["method"].eq("full") & samples["control"].eq("none")]
    values = score[samples["method"].eq("restkv")] - full
    assert row["metric"] == "rouge"
    assert row["difference"] == pytest.approx(values.mean())
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(
        paired(values, np.arange(40)).interval()
    )
    assert row[[*CHANGES, *KL]].isna().all()


def test_budgets_and_two_variants_under_one_label():
    samples = sweep(methods=["restkv"], ratios=[0.9])
    cell = samples[samples["method"] == "restkv"]
    samples = pd.concat(
        [
            samples,
            cell.assign(cell_key="other", correct=True),
            cell.assign(ratio=np.nan, budget=16, cell_key="budget", correct=False),
        ]
    ).astype({"budget": "Int64"})
    table = stats.compare(samples, PLAN)
    assert table["cell_key"].tolist() == ["other", "restkv-0.9-None-none", "budget"]
    assert table["budget"].tolist() == [pd.NA, pd.NA, 16]
    assert table["accuracy"].iloc[[0, 2]].tolist() == [1, 0]
    assert (np.diff(table["difference"]) < 0).all()


def test_no_compressed_cell_is_an_empty_table():
    samples = small()
    table = stats.compare(samples[samples["method"] == "full"], PLAN)
    assert table.empty
    assert list(table.columns) == stats.COMPARISON_COLUMNS
    with_cells = pd.concat([samples[samples["method"] == "full"].assign(task="none"), samples])
    assert len(stats.compare(with_cells, PLAN)) == 1
