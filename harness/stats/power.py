"""What a comparison of so many questions could show, and how many questions it would take.

Knows summaries of paired differences; must not know cells or frames of samples.
"""

from functools import lru_cache
from math import ceil, nan, sqrt

from scipy.special import ndtri
from statsmodels.stats.power import TTestPower

from harness.stats.paired import Paired


def detectable_loss(found: Paired, alpha: float, power: float) -> float:
    """The smallest true loss that a one-sided test at `alpha` shows with probability `power`.

    That many deviations of a question's difference as the power of a t-test asks for (statsmodels).
    Their variance is the observed one and what the loss itself adds by the answers that it changes:
    so questions of which none changed do not promise to show a loss however small.

    Returns:
        A fraction of the score; nan with fewer than two questions.
    """
    if found.questions < 2:
        return nan
    spread = (found.deviation() / found.bound) ** 2 * found.size / found.questions
    share = _effect(found.questions, alpha, power) ** 2 * found.questions / found.size
    # The loss L with L^2 = share * (spread + L - L^2).
    root = sqrt(share**2 + 4 * (1 + share) * share * spread)
    return found.bound * (share + root) / (2 * (1 + share))


def questions_needed(found: Paired, margin: float, alpha: float, power: float) -> int | None:
    """Questions of the same kind to show non-inferiority with `power` if nothing is lost in truth.

    By the power of a t-test (statsmodels). Its deviation is that of a question's difference at the
    margin, where the score test stands, and that without a loss, weighted as the quantiles of alpha
    and power. The latter is the observed one, but not below that of so many changed questions as a
    score test needs to see a loss at all (3 at alpha 0.05).

    Returns:
        None with fewer than two questions or without a margin.
    """
    if found.questions < 2 or margin <= 0:
        return None
    level, reach = ndtri(1 - alpha), ndtri(power)
    least = found.bound * found.typical * sqrt(ceil(level**2) / found.questions)
    deviation = level * found.deviation(-margin) + reach * max(found.deviation(), least)
    effect = margin * (level + reach) / deviation
    test = TTestPower()
    if test.power(effect, 2, alpha, alternative="larger") >= power:
        return 2
    return ceil(
        test.solve_power(effect_size=effect, alpha=alpha, power=power, alternative="larger")
    )


@lru_cache
def _effect(questions: int, alpha: float, power: float) -> float:
    test = TTestPower()
    return float(test.solve_power(nobs=questions, alpha=alpha, power=power, alternative="larger"))
