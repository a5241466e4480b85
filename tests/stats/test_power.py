"""What a sample promises to show, against the noncentral t and against its own test."""

import numpy as np
import pytest
from scipy.stats import nct, norm, t

from harness.stats.paired import paired
from harness.stats.power import detectable_loss, questions_needed

ALPHA, POWER, MARGIN = 0.05, 0.8, 0.02


def power(effect: float, questions: int) -> float:
    """Of the one-sided t-test of one sample."""
    critical = t.ppf(1 - ALPHA, questions - 1)
    return float(nct.sf(critical, questions - 1, effect * np.sqrt(questions)))


def changed(questions: int, lost: int, gained: int):
    same = np.zeros(questions - lost - gained)
    return paired(np.r_[-np.ones(lost), np.ones(gained), same], np.arange(questions))


@pytest.mark.parametrize(("lost", "gained"), [(40, 40), (8, 3), (0, 0)])
def test_detectable_loss_has_the_power_with_the_variance_that_it_brings(lost, gained):
    found = changed(324, lost, gained)
    loss = detectable_loss(found, ALPHA, POWER)
    share = (lost + gained) / 324 - ((gained - lost) / 324) ** 2
    deviation = np.sqrt(share + loss - loss**2)
    assert power(loss / deviation, 324) == pytest.approx(POWER, abs=1e-3)


def test_detectable_loss_shrinks_with_questions_and_never_to_nothing():
    losses = [detectable_loss(changed(n, 0, 0), ALPHA, POWER) for n in (2, 40, 324, 1450)]
    assert losses == sorted(losses, reverse=True)
    assert 0.003 < losses[-1] < losses[0] < 1
    interaction = paired(np.zeros(40), np.arange(40), bound=2)
    assert detectable_loss(interaction, ALPHA, POWER) == pytest.approx(2 * losses[1])


@pytest.mark.parametrize(("lost", "gained"), [(20, 15), (2, 60), (0, 0)])
def test_questions_needed_have_the_power(lost, gained):
    """Deviations at the margin and at no loss enter as in the power of a score test."""
    found = changed(324, lost, gained)
    needed = questions_needed(found, MARGIN, ALPHA, POWER)
    share = (lost + gained) / 324 - ((gained - lost) / 324) ** 2
    critical, reach = norm.ppf(1 - ALPHA), norm.ppf(POWER)
    at_margin = (found.difference + MARGIN) * np.sqrt(324) / found.statistic(-MARGIN)
    deviation = critical * at_margin + reach * np.sqrt(max(share, 3 / 324))
    deviation /= critical + reach
    assert power(MARGIN / deviation, needed) >= POWER > power(MARGIN / deviation, needed - 1)
    normal = ((critical + reach) * deviation / MARGIN) ** 2
    assert needed == pytest.approx(normal, rel=0.02)


def test_without_any_change_the_test_itself_sets_the_least():
    """The score test shows a margin of 2 points from 133 questions on if none changes."""
    just, short = (changed(n, 0, 0).p_above(-MARGIN) for n in (133, 132))
    assert just < ALPHA < short
    needed = [questions_needed(changed(n, 0, 0), MARGIN, ALPHA, POWER) for n in (40, 324, 10**6)]
    assert needed == sorted(needed, reverse=True)
    assert 133 <= needed[-1] < 140
    assert needed[0] > 500  # of 40 questions none changed: up to 3 in 40 might


def test_nothing_can_be_promised_from_one_question_or_without_a_margin():
    one = paired(np.array([1.0, 0.0]), np.array([3, 3]))
    assert np.isnan(detectable_loss(one, ALPHA, POWER))
    assert questions_needed(one, MARGIN, ALPHA, POWER) is None
    assert questions_needed(changed(324, 2, 2), 0.0, ALPHA, POWER) is None
    assert questions_needed(changed(324, 2, 2), 1.0, ALPHA, POWER) == 2
