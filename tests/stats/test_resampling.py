"""The cluster bootstrap against scipy's own on the sums of the questions."""

import warnings

import numpy as np
import pytest
from scipy.stats import bootstrap

from harness.stats import resampling
from harness.stats.resampling import ratio_intervals

RNG = np.random.default_rng(3)
QUESTIONS = RNG.permutation(np.repeat(np.arange(60), RNG.integers(2, 5, 60)))
ROWS = QUESTIONS.size


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def by_scipy(above: np.ndarray, below: np.ndarray, questions: np.ndarray, seed: int) -> list[float]:
    """BCa limits of the ratio of the sums by question, as scipy's manual does it."""
    codes = np.unique(questions, return_inverse=True)[1]
    sums = np.bincount(codes, above), np.bincount(codes, below)
    interval = bootstrap(
        sums, lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, n_resamples=999,
        vectorized=True, batch=resampling.BATCH, method="BCa", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return [interval.low, interval.high]


def test_limits_are_those_of_scipy():
    above = np.array([RNG.random(ROWS) < 0.1, RNG.exponential(1, ROWS), RNG.normal(0, 1, ROWS)])
    below = np.array([np.ones(ROWS), np.ones(ROWS), 1 + RNG.random(ROWS)])
    got = ratio_intervals(above, below, QUESTIONS, 999, 7)
    for limits, a, b in zip(got, above.astype(float), below, strict=True):
        assert limits == pytest.approx(by_scipy(a, b, QUESTIONS, 7), abs=1e-9)


def test_ratios_share_resamples_whatever_stands_beside_them(monkeypatch):
    above = (RNG.random((5, ROWS)) < 0.1).astype(float)
    together = ratio_intervals(above, np.ones_like(above), QUESTIONS, 199, 0)
    alone = [ratio_intervals(row[None], np.ones((1, ROWS)), QUESTIONS, 199, 0)[0] for row in above]
    assert together == pytest.approx(np.array(alone))
    monkeypatch.setattr(resampling, "COLUMNS", 2)
    assert ratio_intervals(above, np.ones_like(above), QUESTIONS, 199, 0) == pytest.approx(together)
    assert not np.allclose(ratio_intervals(above, np.ones_like(above), QUESTIONS, 199, 1), together)


def test_a_ratio_is_over_the_rows_and_questions_that_it_has():
    above = np.array([RNG.random(ROWS) < 0.3, RNG.random(ROWS) < 0.3]).astype(float)
    gone = (QUESTIONS >= 40) | (np.arange(ROWS) < 5)
    above[1, gone] = np.nan
    got = ratio_intervals(above, np.ones_like(above), QUESTIONS, 999, 7)
    ones = np.ones(ROWS)
    assert got[0] == pytest.approx(by_scipy(above[0], ones, QUESTIONS, 7), abs=1e-9)
    kept = by_scipy(above[1, ~gone], ones[~gone], QUESTIONS[~gone], 7)
    assert got[1] == pytest.approx(kept, abs=1e-9)


def test_where_all_questions_say_the_same_the_limits_are_the_ratio():
    nothing, half = np.zeros(ROWS), np.full(ROWS, 0.1 + 0.2)
    missing = np.full(ROWS, np.nan)
    got = ratio_intervals(np.array([nothing, half, missing]), np.ones((3, ROWS)), QUESTIONS, 99, 0)
    assert got[:2] == pytest.approx(np.array([[0, 0], [0.3, 0.3]]))
    assert np.isnan(got[2]).all()
    one = ratio_intervals(np.array([[1.0, 0, 0]]), np.ones((1, 3)), np.array([4, 4, 4]), 99, 0)
    assert one[0] == pytest.approx([1 / 3, 1 / 3])
    assert ratio_intervals(np.zeros((0, 3)), np.zeros((0, 3)), np.arange(3), 99, 0).shape == (0, 2)


def test_no_limits_where_a_resample_leaves_nothing_to_divide_by():
    room = np.where(QUESTIONS == 3, 1.0, 0.0)  # all of it in one question, which may not be drawn
    turned = 200.5 * room - 1  # above 0 in all, below 0 where that question is not drawn
    assert turned.sum() > 0
    below = np.array([room, turned, np.zeros(ROWS), -np.ones(ROWS), np.ones(ROWS)])
    above = np.tile((RNG.random(ROWS) < 0.5).astype(float), (5, 1))
    got = ratio_intervals(above, below, QUESTIONS, 199, 0)
    assert np.isnan(got[:4]).all()
    assert (got[4, 0] < above[4].mean()) & (above[4].mean() < got[4, 1])


def test_ties_count_as_ties():
    """BCa counts resamples equal to the ratio; graded scores must not lose them to rounding."""
    above = (RNG.random(ROWS) < 0.05).astype(float)
    whole = ratio_intervals(above[None], np.ones((1, ROWS)), QUESTIONS, 999, 0)
    tenth = ratio_intervals(0.1 * above[None], np.ones((1, ROWS)), QUESTIONS, 999, 0)
    assert tenth == pytest.approx(0.1 * whole, abs=1e-9)
