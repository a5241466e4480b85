"""The test of paired differences against published tests, its definition, and by enumeration."""

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from harness.stats.paired import FEW, NOTHING, Paired, paired, unseen


def table(gained: int, lost: int, pairs: int) -> Paired:
    """Pairs of answers, one a question, of which so many are right on one side only."""
    same = np.zeros(pairs - gained - lost)
    return paired(np.r_[np.ones(gained), -np.ones(lost), same], np.arange(pairs))


@pytest.mark.parametrize(
    ("gained", "lost", "pairs", "p"), [(1, 7, 21, 0.0703), (6, 16, 161, 0.0525)]
)
def test_against_no_difference_it_is_mcnemars_exact_test(gained, lost, pairs, p):
    """Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8:
    airway responses (Bentur 2009) and remissions (Cavo 2012)."""
    assert table(gained, lost, pairs).p_equal() == pytest.approx(p, abs=5e-5)
    assert table(lost, gained, pairs).p_equal() == pytest.approx(p, abs=5e-5)


@pytest.mark.parametrize(("lost", "pairs"), [(0, 3), (0, 324), (1, 44), (5, 12), (12, 12)])
def test_where_all_that_changed_is_lost_it_is_clopper_and_pearsons(lost, pairs):
    found = table(0, lost, pairs)
    worst = proportion_confint(lost, pairs, alpha=0.1, method="beta")[1]
    assert found.lower(0.05) == pytest.approx(-worst, abs=1e-7)


@pytest.mark.parametrize("questions", [[2, 2, 2], [4, 2, 3, 3, 2], [1] * 6])
def test_it_is_gaffkes_as_defined_by_spacings(questions):
    """Learned-Miller and Thomas 2019 (arXiv 1905.06208): 1 less sorted uniforms times spacings."""
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(len(questions)), questions)
    values = rng.choice([-1.0, -0.5, 0.0, 0.25, 1.0], names.size)
    found = paired(values, names)
    sizes = np.array(questions)
    sums = np.bincount(names, values)
    largest = sizes.max()
    for mean in (-0.6, -0.2, 0.1):
        # Variables that are never below -largest * (1 + mean), as shares of their range.
        floor = -largest * (1 + mean)
        scaled = np.sort((sums - mean * sizes - floor) / (2 * largest - floor))
        spacings = np.diff(np.r_[0.0, scaled])
        uniform = np.sort(rng.random((200_000, sizes.size)), axis=1)
        below = uniform[:, ::-1] @ spacings <= -floor / (2 * largest - floor)
        assert found.p_above(mean) == pytest.approx(below.mean(), abs=0.006)


def worst_size(pairs: int, mean: float, level: float, directions: tuple[str, ...]) -> float:
    """How often, at worst over discordance, a test of `mean` is wrong if that is the truth."""
    rejected = {
        (lost, gained): [
            table(gained, lost, pairs).p_above(mean) <= level and "above" in directions,
            table(gained, lost, pairs).p_below(mean) <= level and "below" in directions,
        ]
        for lost, gained in product(range(pairs + 1), repeat=2)
        if lost + gained <= pairs
    }
    worst = 0.0
    for loss in np.linspace(max(0.0, -mean), (1 - mean) / 2, 41):
        gain = loss + mean
        same = max(0.0, 1 - loss - gain)
        chance = sum(
            comb(pairs, lost) * comb(pairs - lost, gained)
            * loss**lost * gain**gained * same ** (pairs - lost - gained)
            for (lost, gained), found in rejected.items()
            if any(found)
        )  # fmt: skip
        worst = max(worst, chance)
    return worst


@pytest.mark.parametrize("pairs", [3, 5, 8, 12, 20])
@pytest.mark.parametrize("mean", [-0.02, -0.1, 0.0])
def test_the_size_never_exceeds_the_level(pairs, mean):
    for direction in ("above", "below"):
        assert worst_size(pairs, mean, 0.05, (direction,)) <= 0.05
    assert worst_size(pairs, mean, 0.025, ("above", "below")) <= 0.05


def test_three_questions_all_lost_say_nothing_and_five_say_something():
    low, high = table(0, 3, 3).interval()
    assert low == -1
    assert high == pytest.approx(1 - 2 * 0.025 ** (1 / 3), abs=1e-6)
    assert table(0, 3, 3).p_below(-0.02) > 0.1
    assert table(0, 5, 5).p_below(-0.02) < 0.05


VALUES = st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.0, 0.25, 1.0])
ROWS = st.lists(st.tuples(VALUES, st.integers(0, 6)), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None)
@given(ROWS, st.sampled_from([0.01, 0.025, 0.05, 0.3]))
def test_limits_are_where_the_tests_turn(rows, alpha):
    values, questions = map(np.array, zip(*rows, strict=True))
    found = paired(values, questions)
    lower, upper = found.lower(alpha), found.upper(alpha)
    assert -1 <= lower <= upper <= 1
    assert found.interval(1 - 2 * alpha) == pytest.approx((lower, upper))
    for limit, p in ((lower, found.p_above(lower)), (upper, found.p_below(upper))):
        if abs(limit) < 1:
            assert p == pytest.approx(alpha, abs=1e-6)
            assert found.p_equal(limit) <= 2 * alpha + 1e-6
    means = np.linspace(-1, 1, 21)
    above = [found.p_above(mean) for mean in means]
    below = [found.p_below(mean) for mean in means]
    assert (np.diff(above) >= -1e-7).all()
    assert (np.diff(below) <= 1e-7).all()
    for margin in (0.1, 0.5):
        inside = -margin < lower and upper < margin
        assert (found.p_equivalent(margin) < alpha) == inside


@settings(max_examples=20, deadline=None)
@given(ROWS)
def test_sides_are_alike_and_the_unit_does_not_matter(rows):
    values, questions = map(np.array, zip(*rows, strict=True))
    found = paired(values, questions)
    low, high = found.interval()
    assert paired(-values, questions).interval() == pytest.approx((-high, -low), abs=1e-7)
    double = paired(2 * values, questions, bound=2)
    assert double.difference == pytest.approx(2 * found.difference)
    assert double.interval() == pytest.approx((2 * low, 2 * high), abs=1e-7)
    assert double.p_equal(0.2) == pytest.approx(found.p_equal(0.1))


def test_rows_that_only_repeat_a_question_add_nothing():
    values = np.r_[-np.ones(6), np.ones(2), np.zeros(92)]
    once = paired(values, np.arange(100))
    thrice = paired(np.repeat(values, 3), np.repeat(np.arange(100), 3))
    assert (thrice.rows, thrice.questions) == (300, 100)
    assert thrice.interval() == pytest.approx(once.interval(), abs=1e-7)


def test_no_change_at_all_counts_questions():
    found = paired(np.zeros(1296), np.arange(1296) % 324)
    end = 1 - 0.025 ** (1 / 324)
    assert found.interval() == pytest.approx((-end, end), abs=1e-7)
    assert found.p_equal() == 1
    assert found.p_above(-0.02) < 0.01 < 0.05 < found.p_above(-0.005)
    assert found.p_equivalent(0.02) == pytest.approx(found.p_above(-0.02))


def test_the_question_more_is_of_the_largest_size_where_questions_are_few():
    assert unseen((1.0,), (5.0,)) == 1
    assert unseen((2.0, 4.0), (FEW / 4, FEW / 4)) == 4
    many = unseen((2.0, 4.0), (1e6, 1e6))
    assert 3 < many < 3.02
    assert 3.5 < unseen((2.0, 3.0, 4.0), (83.0, 50.0, 191.0)) < 3.8
    # Three of a thousand questions hold nearly all rows: they are few however many there are.
    assert unseen((1.0, 10_000.0), (997.0, 3.0)) == 10_000
    few, large = (
        paired(-np.ones(9), np.r_[0, 1, 2, 3, 4, 4, 4, 4, 4]),
        paired(-np.ones(5), range(5)),
    )
    assert few.upper(0.05) > large.upper(0.05)


def test_extremes_and_nothing():
    low, high = paired(-np.ones(8), np.arange(8)).interval()
    assert low == -1
    assert -1 < high < -0.2
    low, high = paired(np.ones(8), np.arange(8)).interval()
    assert high == 1
    assert 0.2 < low < 1
    alone = paired(np.array([1.0, 0.0, 0.0]), np.array([5, 5, 5]))
    assert alone.interval()[0] < -0.5 < 0.9 < alone.interval()[1]
    nothing = paired(np.array([]), np.array([]))
    assert nothing == NOTHING
    values = [*nothing.interval(), nothing.p_equal(), nothing.p_above(-0.1), nothing.difference]
    assert np.isnan([*values, nothing.p_below(0.1), nothing.p_equivalent(0.1)]).all()


def test_graded_differences_count_by_their_variance():
    """Many of them: the interval is Wald's, a little wider."""
    rng = np.random.default_rng(0)
    values = rng.normal(0.1, 0.1, 500).clip(-1, 1)
    wald = norm.ppf(0.975) * values.std() / np.sqrt(500)
    low, high = paired(values, np.arange(500)).interval()
    assert (low, high) == pytest.approx(
        (values.mean() - wald, values.mean() + wald), abs=0.5 * wald
    )
    assert high - low > 2 * wald


@pytest.mark.parametrize("value", [1.5, -2.0, float("nan")])
def test_what_is_no_difference_of_scores_is_refused(value):
    with pytest.raises(ValueError, match="between -1"):
        paired(np.array([0.0, value]), np.array([0, 1]))
