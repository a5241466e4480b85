"""What a sample promises to show, against its own test by enumeration and closed forms."""

from math import ceil, log

import numpy as np
import pytest
from scipy.stats import binom

from harness.stats.paired import paired
from harness.stats.power import detectable_loss, questions_least, questions_needed

ALPHA, POWER, MARGIN = 0.05, 0.8, 0.02


def changed(questions: int, lost: int, gained: int):
    same = np.zeros(questions - lost - gained)
    return paired(np.r_[-np.ones(lost), np.ones(gained), same], np.arange(questions))


def shown(questions: int, loss: float, gain: float, rejects) -> float:
    """How often a test that rejects (lost, gained) does so at these chances of loss and gain."""
    total = 0.0
    for gained in range(int(binom.ppf(1 - 1e-4, questions, gain)) + 1):
        most = int(binom.ppf(1 - 1e-4, questions - gained, loss / (1 - gain)))
        chances = binom.pmf(np.arange(most + 1), questions - gained, loss / (1 - gain))
        found = [rejects(changed(questions, lost, gained)) for lost in range(most + 1)]
        total += binom.pmf(gained, questions, gain) * float(chances @ np.array(found))
    return total


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 2)])
def test_a_detectable_loss_is_shown_with_the_power(lost, gained):
    loss = detectable_loss(changed(200, lost, gained), ALPHA, POWER)
    share = (lost + gained + 1) / 201 / 2
    got = shown(200, share * (1 - loss) + loss, share * (1 - loss), lambda f: f.p_below(0) < ALPHA)
    assert got == pytest.approx(POWER, abs=0.08)


def test_detectable_loss_shrinks_with_questions_and_never_to_nothing():
    losses = [detectable_loss(changed(n, 0, 0), ALPHA, POWER) for n in (5, 40, 324, 1450, 10**5)]
    assert losses == sorted(losses, reverse=True)
    assert 0 < losses[-1] < losses[0] < 1
    assert np.isnan(detectable_loss(changed(4, 0, 0), ALPHA, POWER))  # 1 / 16 even if all are lost
    interaction = paired(np.zeros(40), np.arange(40), bound=2)
    assert detectable_loss(interaction, ALPHA, POWER) == pytest.approx(2 * losses[1])


@pytest.mark.parametrize(("lost", "gained"), [(3, 1), (0, 0)])
def test_questions_needed_have_the_power(lost, gained):
    needed = questions_needed(changed(324, lost, gained), MARGIN, ALPHA, POWER)
    share = (lost + gained + 1) / 325 / 2
    got = shown(needed, share, share, lambda f: f.p_above(-MARGIN) <= ALPHA)
    assert got == pytest.approx(POWER, abs=0.08)


@pytest.mark.parametrize("alpha", [0.05, 0.0125])
@pytest.mark.parametrize("margin", [0.02, 0.1])
def test_with_fewer_than_the_least_nothing_can_be_excluded(alpha, margin):
    least = questions_least(changed(3, 3, 0), margin, alpha)
    assert least == ceil(log(alpha) / log(1 - margin))
    assert (
        changed(least, 0, 0).p_above(-margin) <= alpha < changed(least - 1, 0, 0).p_above(-margin)
    )


def test_the_least_of_questions_of_several_sizes_is_that_of_their_own_test():
    sizes = np.array([2, 3, 4])
    found = paired(np.zeros(9), np.repeat([0, 1, 2], sizes))
    least = questions_least(found, 0.1, ALPHA)
    for n in (least + -least % 3, least - 1 - (least - 1) % 3):
        some = np.resize(sizes, n)
        rows = paired(np.zeros(some.sum()), np.repeat(np.arange(n), some))
        assert (rows.p_above(-0.1) <= ALPHA) == (n >= least)


def test_needed_is_never_less_than_the_least_and_grows_with_what_changed():
    needed = [questions_needed(changed(n, 0, 0), MARGIN, ALPHA, POWER) for n in (3, 40, 324, 10**5)]
    assert needed == sorted(needed, reverse=True)
    assert 149 == questions_least(changed(3, 0, 0), MARGIN, ALPHA) <= needed[-1] <= 150
    more = [questions_needed(changed(324, k, k), MARGIN, ALPHA, POWER) for k in (0, 2, 20, 80)]
    assert more == sorted(more)


def test_nothing_can_be_promised_without_rows_or_a_margin():
    nothing = paired(np.array([]), np.array([]))
    assert np.isnan(detectable_loss(nothing, ALPHA, POWER))
    assert questions_needed(nothing, MARGIN, ALPHA, POWER) is None
    assert questions_needed(changed(324, 2, 2), 0.0, ALPHA, POWER) is None
    assert questions_needed(changed(324, 2, 2), 1.0, ALPHA, POWER) == 1
