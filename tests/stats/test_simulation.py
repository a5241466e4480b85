"""Coverage, size and power on simulated sweeps, a quick version of scripts/simulate_statistics.

Seeds are fixed; the bounds are those that a method which keeps its promise passes in all but one of
a thousand seeds.
"""

import numpy as np
import pytest
from scipy.stats import binom

from harness.stats.plan import Plan
from scripts.simulate_statistics import Setting, draw, measure, promised
from scripts.worst_size import exact

RUNS = 200
PLAN = Plan(resamples=999)


def least(share: float) -> float:
    return binom.ppf(0.001, RUNS, share) / RUNS


def most(share: float) -> float:
    return binom.ppf(0.999, RUNS, share) / RUNS


def test_the_simulation_does_as_it_says():
    setting = Setting(4000, 0.9, -0.05, 0.6)
    drawn = draw(setting, 20, np.random.default_rng(0))
    assert drawn.full.mean() == pytest.approx(0.9, abs=0.005)
    values = drawn.differences()
    assert values.mean() == pytest.approx(-0.05, abs=0.005)
    assert (values > 0).mean() == pytest.approx(0.02, abs=0.003)
    sizes = np.bincount(drawn.question)
    assert (sizes.min(), sizes.max()) == (2, 4)
    one, two = (values[:, np.flatnonzero(drawn.question == q)[:2]] for q in (0, 1))
    assert not np.array_equal(one, two)
    starts = np.flatnonzero(np.diff(drawn.question, prepend=-1))
    within = np.corrcoef(values[:, starts].ravel(), values[:, starts + 1].ravel())[0, 1]
    assert within == pytest.approx(0.6, abs=0.03)
    circular = drawn.circular(drawn.full)
    assert circular.shape == (4000, 20)
    assert circular.iloc[1, 3] == drawn.full[3, drawn.question == 1].all()


@pytest.mark.parametrize("setting", [Setting(324, 0.9, -0.1, 0.5), Setting(324, 0.8, -0.02, 0.9)])
def test_many_questions_keep_their_promises_to_the_point(setting):
    rates = measure(setting, RUNS, 1, PLAN)
    assert least(0.95) <= rates["score"] <= most(0.965)
    assert least(0.945) <= rates["bootstrap"] <= most(0.95)
    assert least(0.03) <= rates["at_truth"] <= most(0.05)


def test_without_a_difference_no_test_finds_one_too_often():
    rates = measure(Setting(324, 0.8, 0.0, 0.5), RUNS, 2, PLAN)
    assert rates["equal"] <= most(0.05)
    assert 0 < rates["mcnemar"] <= most(0.05)
    assert rates["score"] >= least(0.95)


@pytest.mark.parametrize(
    "setting", [Setting(324, 0.99, -0.02, 0.9), Setting(40, 0.9, -0.02, 0.5),
                Setting(40, 0.99, 0.0, 0.1)],
)  # fmt: skip
def test_few_changes_make_the_score_interval_careful(setting):
    """The bootstrap cannot be: it has never seen what did not happen. The score test can."""
    rates = measure(setting, RUNS, 3, PLAN)
    assert rates["score"] >= least(0.95)
    assert rates["at_truth"] <= most(0.05)
    assert rates["width"] > rates["bootstrap_width"]


def test_at_the_margin_and_beyond_it():
    assert measure(Setting(324, 0.99, -0.1, 0.5), RUNS, 4, PLAN)["margin"] == 0
    assert measure(Setting(324, 0.99, 0.0, 0.5), RUNS, 4, PLAN)["margin"] > 0.9


def test_promises_of_power_are_kept():
    kept = promised(Setting(324, 0.9, 0.0, 0.5), RUNS, 5, PLAN)
    assert least(0.78) <= kept["shown"]
    assert least(0.78) <= kept["kept"] <= 0.93


@pytest.mark.parametrize("questions", [5, 12, 20])
def test_worst_sizes_stay_within_the_level(questions):
    for sizes in (np.ones(questions, dtype=int), np.resize((2, 3, 4), questions)):
        assert max(exact(sizes, 0.02, 0.05)) <= 0.05
    if questions == 5:  # all five gained or lost
        less, more = exact(np.ones(5, dtype=int), 0.02, 0.05)
        assert (less, more) == pytest.approx((0.49**5, 0.51**5))
