"""The score test of paired differences against published examples and a brute-force likelihood."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from harness.stats.paired import NOTHING, Paired, paired


def table(only_first: int, only_second: int, pairs: int) -> Paired:
    """Pairs of answers, one a question, of which so many are right on one side only."""
    same = np.zeros(pairs - only_first - only_second)
    values = np.r_[np.ones(only_first), -np.ones(only_second), same]
    return paired(values, np.arange(pairs))


@pytest.mark.parametrize(
    ("only_first", "only_second", "pairs", "confidence", "low", "high", "digits"),
    [
        # Tango 1998 (Stat Med 17:891): disinfection of contact lenses; and his second example.
        (0, 1, 44, 0.90, -0.096, 0.037, 3),
        (9, 3, 32, 0.95, -0.027, 0.390, 3),
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter
        # 8: airway responses (Bentur 2009) and remissions (Cavo 2012).
        (1, 7, 21, 0.95, -0.517, -0.026, 3),
        (6, 16, 161, 0.95, -0.1240, -0.0054, 4),
    ],
)
def test_published_intervals(only_first, only_second, pairs, confidence, low, high, digits):
    found = table(only_first, only_second, pairs)
    assert found.size == pytest.approx(pairs)
    assert np.round(found.interval(confidence), digits).tolist() == [low, high]


def test_published_equivalence_test():
    """Tango 1998, contact lenses: Z = 1.709 and p = 0.044 at a margin of 0.1."""
    found = table(0, 1, 44)
    assert found.statistic(-0.1) == pytest.approx(1.709, abs=5e-4)
    assert found.p_above(-0.1) == pytest.approx(0.044, abs=5e-4)


@pytest.mark.parametrize(("only_first", "only_second"), [(3, 9), (1, 0), (14, 2), (12, 20)])
def test_statistic_and_interval_against_the_likelihood_on_a_grid(only_first, only_second):
    """The likeliest shares with a given difference, searched; no quadratic, no root finder."""
    pairs, z = 32, norm.ppf(0.975)
    found = table(only_first, only_second, pairs)
    inside = []
    for delta in np.linspace(-0.9, 0.9, 181):
        lost = np.linspace(max(0.0, -delta), (1 - delta) / 2, 20_003)[1:-1]
        gained, same = lost + delta, 1 - 2 * lost - delta
        fit = only_second * np.log(lost) + (pairs - only_first - only_second) * np.log(same)
        fit += only_first * np.log(gained)
        q = lost[np.argmax(fit)]
        excess = (only_first - only_second) / pairs - delta
        score = excess / np.sqrt((2 * q + delta - delta**2) / pairs)
        assert found.statistic(delta) == pytest.approx(score, abs=2e-3 + 1e-3 * abs(score))
        if abs(score) <= z:
            inside.append(delta)
    assert found.interval() == pytest.approx((inside[0], inside[-1]), abs=0.0101)


VALUES = st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.0, 0.25, 1.0])
ROWS = st.lists(st.tuples(VALUES, st.integers(0, 6)), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None)
@given(ROWS, st.sampled_from([0.01, 0.025, 0.05, 0.4]))
def test_limits_are_where_the_tests_turn(rows, alpha):
    values, questions = map(np.array, zip(*rows, strict=True))
    found = paired(values, questions)
    lower, upper = found.lower(alpha), found.upper(alpha)
    assert -1 <= lower <= found.difference <= upper <= 1
    assert found.interval(1 - 2 * alpha) == pytest.approx((lower, upper))
    for limit, p in ((lower, found.p_above(lower)), (upper, 1 - found.p_above(upper))):
        if abs(limit) < 1:
            assert p == pytest.approx(alpha, abs=1e-6)
            assert found.p_equal(limit) == pytest.approx(2 * alpha, abs=1e-6)
    statistics = [found.statistic(mean) for mean in np.linspace(-1, 1, 41)]
    assert (np.diff(statistics[1:-1]) < 0).all()


@settings(max_examples=20, deadline=None)
@given(ROWS)
def test_sides_are_alike_and_the_unit_does_not_matter(rows):
    values, questions = map(np.array, zip(*rows, strict=True))
    found = paired(values, questions)
    low, high = found.interval()
    assert paired(-values, questions).interval() == pytest.approx((-high, -low), abs=1e-9)
    double = paired(2 * values, questions, bound=2)
    assert double.interval() == pytest.approx((2 * low, 2 * high), abs=1e-9)
    assert double.deviation(0.2) == pytest.approx(2 * found.deviation(0.1))
    assert double.p_equal(0.2) == pytest.approx(found.p_equal(0.1))


def test_clustered_size_written_out():
    """Every step of the effective number of rows as a loop, on questions of 1 to 4 rows."""
    rows = {
        "a": [-1, -1, 0], "b": [0, 0], "c": [0, 0, 0, 0], "d": [1, 0, 0], "e": [-1],
        "f": [0, -1, -1, -1], "g": [0, 0, 0],
    }  # fmt: skip
    every = [value for values in rows.values() for value in values]
    count, number = len(rows), len(every)
    mean = sum(every) / number
    clustered = sum(sum(v - mean for v in values) ** 2 for values in rows.values())
    clustered *= count / (count - 1)
    binary = sum((v - mean) ** 2 for v in every) * number / (number - 1)
    one_more = number / count  # rows of a question that differ together
    effect = (clustered + one_more**2) / (binary + one_more)
    size = number / effect * (t.ppf(0.975, number - 1) / t.ppf(0.975, count - 1)) ** 2
    questions = [name for name, values in rows.items() for _ in values]
    found = paired(np.array(every, dtype=float), np.array(questions))
    assert (found.rows, found.questions) == (number, count)
    assert found.difference == pytest.approx(mean)
    assert found.size == pytest.approx(size)
    assert found.size < number
    variance = (6 + 1) / number - mean**2
    assert found.deviation() == pytest.approx(np.sqrt(variance / size * count))


def test_rows_that_only_repeat_a_question_add_nothing():
    values = np.r_[-np.ones(6), np.ones(2), np.zeros(92)]
    once = paired(values, np.arange(100))
    thrice = paired(np.repeat(values, 3), np.repeat(np.arange(100), 3))
    assert thrice.size == pytest.approx(100, rel=0.03)
    assert thrice.interval() == pytest.approx(once.interval(), abs=0.002)


def test_rows_of_a_question_never_count_for_more_than_independent_ones():
    values = np.tile([1.0, -1.0, 0.0], 50)  # each question gains one and loses one
    found = paired(values, np.repeat(np.arange(50), 3))
    assert 0.9 * 150 < found.size <= 150


def test_no_change_at_all_counts_questions():
    """Tango's limits are then z^2 / (n + z^2) on both sides."""
    found = paired(np.zeros(1080), np.arange(1080) % 324)
    end = norm.ppf(0.975) ** 2 / (324 + norm.ppf(0.975) ** 2)
    assert found.size == 324
    assert found.interval() == pytest.approx((-end, end))
    assert found.p_equal() == 1
    assert found.p_above(-0.02) < 0.01 < 0.05 < found.p_above(-0.005)


def test_the_first_change_does_not_make_the_interval_leap():
    none, one = np.zeros(1080), np.r_[-1.0, np.zeros(1079)]
    low, high = paired(none, np.arange(1080) % 324).interval()
    first_low, first_high = paired(one, np.arange(1080) % 324).interval()
    assert first_low == pytest.approx(low, rel=0.1)
    assert first_high < high


def test_extremes_and_nothing():
    low, high = paired(-np.ones(8), np.arange(8)).interval()
    assert low == -1
    assert -1 < high < -0.3
    low, high = paired(np.ones(8), np.arange(8)).interval()
    assert high == 1
    assert 0.3 < low < 1
    alone = paired(np.array([1.0, 0.0, 0.0]), np.array([5, 5, 5]))
    assert alone.size == 1
    assert alone.interval()[0] < -0.5 < 0.9 < alone.interval()[1]
    nothing = paired(np.array([]), np.array([]))
    assert nothing == NOTHING
    values = [*nothing.interval(), nothing.p_equal(), nothing.p_above(-0.1), nothing.deviation()]
    assert np.isnan(values).all()


def test_graded_differences_count_by_their_variance():
    """Half points a question: about a quarter of the variance of whole ones, so narrower."""
    rng = np.random.default_rng(0)
    whole = rng.choice([-1.0, 0.0, 1.0], 200, p=[0.2, 0.6, 0.2])
    low, high = paired(whole, np.arange(200)).interval()
    half_low, half_high = paired(whole / 2, np.arange(200)).interval()
    assert half_high - half_low == pytest.approx((high - low) / 2, rel=0.03)
    values = rng.normal(0.1, 0.1, 500).clip(-1, 1)
    wald = norm.ppf(0.975) * values.std() / np.sqrt(500)
    assert paired(values, np.arange(500)).interval() == pytest.approx(
        (values.mean() - wald, values.mean() + wald), abs=0.1 * wald
    )


@pytest.mark.parametrize("value", [1.5, -2.0, float("nan")])
def test_what_is_no_difference_of_scores_is_refused(value):
    with pytest.raises(ValueError, match="between -1"):
        paired(np.array([0.0, value]), np.array([0, 1]))
