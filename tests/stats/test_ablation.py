"""The ablation table against contrasts worked out by hand."""

import warnings

import numpy as np
import pandas as pd
import pytest

from harness import stats
from harness.stats.contrasts import contrasts
from harness.stats.paired import paired
from harness.stats.resampling import ratio_intervals
from tests.outputs.conftest import cell_rows, sweep

PLAN = stats.Plan(resamples=199)
INDEX = [5, 1_000_005, 6, 1_000_006, 9, 1_000_009, 12]
QUESTION = np.array([5, 5, 6, 6, 9, 9, 12])
FACTORS = {
    "restkv": {"temporal": "ema", "spatial": "adaptive"},
    "restkv_mean": {"temporal": "mean", "spatial": "adaptive"},
    "restkv_nospatial": {"temporal": "ema", "spatial": "none"},
    "restkv_neither": {"temporal": "mean", "spatial": "none"},
}
ANSWERS = {
    "restkv": [1, 1, 1, 1, 0, 1, 1],
    "restkv_mean": [1, 0, 1, 1, 0, 0, 1],
    "restkv_nospatial": [1, 1, 0, 0, 1, 0, 1],
    "restkv_neither": [0, 0, 0, 1, 1, 0, 0],
}
NUMBERS = ["difference", "low", "high", "bootstrap_low", "bootstrap_high", "p"]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def four(ratio: float = 0.9, **columns: object) -> pd.DataFrame:
    parts = [
        cell_rows(label, answers, index=INDEX, ratio=ratio) for label, answers in ANSWERS.items()
    ]
    return pd.concat(parts).assign(**columns)


def test_every_contrast_by_hand():
    table = stats.ablate(four(), FACTORS, PLAN)
    assert list(table.columns) == stats.ABLATION_COLUMNS
    a, b, c, d = (np.array(ANSWERS[label], dtype=float) for label in FACTORS)
    want = {
        ("temporal", "ema - mean", "spatial=none"): (c - d, 1),
        ("temporal", "ema - mean", "spatial=adaptive"): (a - b, 1),
        ("temporal", "ema - mean", "mean of 2"): ((a - b + c - d) / 2, 1),
        ("spatial", "adaptive - none", "temporal=mean"): (b - d, 1),
        ("spatial", "adaptive - none", "temporal=ema"): (a - c, 1),
        ("spatial", "adaptive - none", "mean of 2"): ((a - c + b - d) / 2, 1),
        ("interaction", "ema - mean, adaptive - none", ""): (a - b - c + d, 2),
        ("smoothing", "ema+adaptive - mean+none", ""): (a - d, 1),
    }
    rows = table.set_index(["effect", "contrast", "given"])
    assert rows.index.tolist() == list(want)
    for key, (values, bound) in want.items():
        found = paired(values, QUESTION, bound)
        limits = ratio_intervals(values[None], np.ones((1, 7)), QUESTION, 199, 0)[0]
        numbers = [values.mean(), *found.interval(), *limits, found.p_equal()]
        assert rows.loc[key, NUMBERS].tolist() == pytest.approx(numbers)
        assert rows.loc[key, "n_questions"] == 4
    assert table["evicted"].tolist() == pytest.approx([90 / 101] * 8)
    assert table["p_holm"].notna().tolist() == [False] * 7 + [True]


def test_all_levels_give_all_contrasts():
    kinds = {(t, s) for t in ("ema", "mean") for s in ("none", "avg", "adaptive", "relative")}
    found = list(contrasts(kinds))
    counts = pd.Series([one.effect for one in found]).value_counts().to_dict()
    assert counts == {"temporal": 5, "spatial": 15, "interaction": 3, "smoothing": 1}
    assert [one.contrast for one in found if one.given == "mean of 2"] == [
        "avg - none", "adaptive - none", "adaptive - avg", "relative - none", "relative - adaptive",
    ]  # fmt: skip
    main = next(one for one in found if one.given == "mean of 4")
    assert main.weights["ema", "avg"] == 0.25
    assert all(sum(one.weights.values()) == pytest.approx(0) for one in found)
    assert {one.bound for one in found if one.effect != "interaction"} == {1}
    assert {one.bound for one in found if one.effect == "interaction"} == {2}


def test_contrasts_of_absent_cells_are_left_out():
    assert list(contrasts({("ema", "adaptive")})) == []
    assert list(contrasts(set())) == []
    (only,) = contrasts({("ema", "adaptive"), ("mean", "none")})
    assert only.effect == "smoothing"
    samples = four()
    assert stats.ablate(samples, {}, PLAN).empty
    one = stats.ablate(samples[samples["method"] == "restkv"], FACTORS, PLAN)
    assert one.empty
    assert list(one.columns) == stats.ABLATION_COLUMNS


def test_holm_over_smoothing_above_the_share():
    samples = pd.concat([four(ratio) for ratio in (0.3, 0.6, 0.9)])
    table = stats.ablate(pd.concat([samples, four().assign(task="other")]), FACTORS, PLAN)
    assert table.groupby("task", sort=False).size().tolist() == [24, 8]
    assert table["ratio"].is_monotonic_increasing
    smoothing = table[table["effect"] == "smoothing"].set_index(["task", "ratio"])
    p = smoothing["p"].iloc[0]
    assert 0.05 < p < 0.5
    assert np.isnan(smoothing["p_holm"].iloc[0])
    assert smoothing["p_holm"].iloc[1:].tolist() == pytest.approx([2 * p, 2 * p, p])
    assert table.loc[table["effect"] != "smoothing", "p_holm"].isna().all()


@pytest.mark.parametrize(
    ("adaptive", "relative", "inert"),
    [(0.0, 0.7, ["adaptive - avg"]), (0.0, 0.0, ["adaptive - avg", "relative - adaptive"]),
     (0.1, 0.0, []), (np.nan, np.nan, [])],
)  # fmt: skip
def test_what_is_about_a_window_that_was_never_active_is_inert(adaptive, relative, inert):
    labels = {"none": np.nan, "avg": np.nan, "adaptive": adaptive, "relative": relative}
    factors = {label: {"temporal": "ema", "spatial": label} for label in labels}
    samples = pd.concat(
        [cell_rows(label, [1, 0, 1], index=[1, 2, 3], ratio=0.9, adaptive_active=active)
         for label, active in labels.items()]
    )  # fmt: skip
    table = stats.ablate(samples, factors, PLAN).set_index("contrast")
    assert table.index[table["inert"]].tolist() == inert
    assert table["inert"].dtype == bool
    active = table["adaptive_active"]
    assert np.isnan(active["avg - none"])
    assert active["adaptive - none"] == pytest.approx(adaptive, nan_ok=True)
    both = np.mean([adaptive, relative])
    assert active["relative - adaptive"] == pytest.approx(both, nan_ok=True)


def test_equal_cells_have_no_effect_and_a_wide_interval():
    samples = four().assign(correct=True)
    table = stats.ablate(samples, FACTORS, PLAN)
    assert (table[["difference", "bootstrap_low", "bootstrap_high"]] == 0).all(axis=None)
    assert (table["p"] == 1).all()
    assert (table["low"] < -0.4).all()
    assert (table["high"] > 0.4).all()


def test_budgets_have_settings_of_their_own():
    budget = four().assign(ratio=np.nan, budget=16, cell_key="n=16-" + four()["method"])
    budget = budget.astype({"budget": "Int64"})
    table = stats.ablate(pd.concat([budget, four()]), FACTORS, PLAN)
    assert table["budget"].tolist() == [pd.NA] * 8 + [16] * 8
    assert table["ratio"].isna().tolist() == [False] * 8 + [True] * 8


def test_nothing_is_said_of_two_cells_under_one_label_or_of_secret_answers():
    samples = four()
    twice = pd.concat([samples, samples[samples["method"] == "restkv"].assign(cell_key="other")])
    table = stats.ablate(twice, FACTORS, PLAN).set_index(["effect", "given"])
    told = table["difference"].notna()
    assert told[told].index.tolist() == [("temporal", "spatial=none"), ("spatial", "temporal=mean")]
    assert table.loc[~told, [*NUMBERS, "p_holm"]].isna().all(axis=None)
    secret = stats.ablate(four(score=np.nan), FACTORS, PLAN)
    assert secret[[*NUMBERS, "p_holm"]].isna().all(axis=None)
    assert (secret["n_questions"] == 0).all()
    samples["score"] = samples["correct"].astype(float)
    samples.loc[samples["method"].eq("restkv") & samples["row"].eq(2), "score"] = np.nan
    part = stats.ablate(samples, FACTORS, PLAN).set_index(["effect", "given"])["difference"]
    assert part.notna().tolist() == told.tolist()


def test_only_rows_that_all_cells_of_a_contrast_have_count():
    samples = four()
    samples = samples[~(samples["method"].eq("restkv") & samples["row"].eq(6))]
    table = stats.ablate(samples, FACTORS, PLAN).set_index(["effect", "given"])
    assert table.loc[("temporal", "spatial=none"), "n_questions"] == 4
    assert table.loc[("smoothing", ""), "n_questions"] == 3
    values = np.subtract(ANSWERS["restkv"], ANSWERS["restkv_neither"])[:6]
    assert table.loc[("smoothing", ""), "difference"] == pytest.approx(values.mean())


def test_other_methods_and_a_full_cache_change_nothing():
    alone = stats.ablate(four(), FACTORS, PLAN)
    beside = stats.ablate(pd.concat([sweep(methods=["h2o"]), four()]), FACTORS, PLAN)
    pd.testing.assert_frame_equal(alone, beside)


@pytest.mark.parametrize(
    ("factors", "words"),
    [({"a": {"temporal": "last", "spatial": "none"}}, "temporal=last"),
     ({"a": {"temporal": "ema", "spatial": "max"}}, "spatial=max"),
     ({"a": FACTORS["restkv"], "b": FACTORS["restkv"]}, "a and b have the same levels")],
)  # fmt: skip
def test_factors_that_are_no_design_are_refused(factors, words):
    with pytest.raises(ValueError, match=words):
        stats.ablate(four(), factors, PLAN)
