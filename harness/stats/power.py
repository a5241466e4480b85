"""What a comparison of so many questions could show, and how many questions it would take.

Knows summaries of paired differences; must not know cells or frames of samples.

The plans rest on the changes that were seen, taken as often for better as for worse, and on one
changed question more: where none changed, one might have.
"""

from collections.abc import Callable
from functools import lru_cache
from math import ceil, log, log1p, nan, sqrt

from scipy.optimize import brentq
from scipy.special import ndtri

from harness.stats.gaffke import Numbers, below_zero
from harness.stats.paired import Paired, unseen

MOST = 10**8  # questions beyond which a number of them says nothing


@lru_cache
def detectable_loss(found: Paired, alpha: float, power: float) -> float:
    """The smallest true loss that a one-sided test at `alpha` shows with probability `power`.

    Such a loss takes whole questions, as well as the changes for better and worse: where it takes
    rows here and there, a smaller one is shown already.

    Returns:
        A fraction of the score; nan where no loss could be shown, and without rows.
    """
    if not found.rows:
        return nan
    n = found.questions
    mean = found.rows / n
    sizes, sums, shares = _changes(found)
    spread = _spread(sums, shares, mean)
    extra = unseen(found.sizes, found.counts)

    def above(loss: float) -> float:
        """How far the p-value at the quantile of `power` is above alpha."""
        luck = float(ndtri(power)) * sqrt(((1 - loss) * spread + loss - loss**2) / n)
        kept = [-(s + m * luck) for s, m in zip(sums, sizes, strict=True)]
        shapes = [n * (1 - loss) * share for share in shares]
        return below_zero((*kept, mean * (1 - luck), -extra), (*shapes, n * loss, 1.0)) - alpha

    if n * log(0.5) > log(alpha) or above(1 - 1e-9) > 0:
        return nan
    return found.bound * float(brentq(above, 1e-9, 1 - 1e-9, xtol=1e-5))


@lru_cache
def questions_needed(found: Paired, margin: float, alpha: float, power: float) -> int | None:
    """Questions of the same kind to show non-inferiority with `power` if nothing is lost in truth.

    Returns:
        None without rows or a margin; never less than `questions_least`.
    """
    least = questions_least(found, margin, alpha)
    if least is None or margin >= found.bound:
        return least
    goal = margin / found.bound
    mean = found.rows / found.questions
    sizes, sums, shares = _changes(found)
    spread = _spread(sums, shares, mean)

    def enough(n: int) -> bool:
        short = goal - float(ndtri(power)) * sqrt(spread / n)
        values = [s + m * short for s, m in zip(sums, sizes, strict=True)]
        extra = _unseen_of(found, n) * (goal - 1)
        shapes = [n * share for share in shares]
        return below_zero((*values, extra), (*shapes, 1.0)) <= alpha

    return _first(enough, least)


@lru_cache
def questions_least(found: Paired, margin: float, alpha: float) -> int | None:
    """Questions of the same sizes that show non-inferiority where not one answer changes.

    With fewer no loss of the margin can be excluded: too few, whatever the method does.

    Returns:
        None without rows or a margin.
    """
    if not found.rows or margin <= 0:
        return None
    goal = margin / found.bound
    if goal >= 1:
        return 1

    def enough(n: int) -> bool:
        odds = goal / (1 - goal) / _unseen_of(found, n)
        kinds = zip(found.sizes, found.counts, strict=True)
        per_question = sum(k * log1p(m * odds) for m, k in kinds) / found.questions
        return n * per_question >= -log(alpha) * (1 - 1e-12)

    return _first(enough, 1)


def _first(enough: Callable[[int], bool], start: int) -> int | None:
    """About the first number from `start` on that is enough (exact up to 1,000); None: > `MOST`."""
    low, high = start - 1, start
    while not enough(high):
        low, high = high, ceil(1.5 * high)
        if high > MOST:
            return None
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _unseen_of(found: Paired, n: int) -> float:
    return unseen(found.sizes, tuple(k * n / found.questions for k in found.counts))


def _changes(found: Paired) -> tuple[Numbers, Numbers, Numbers]:
    """Kinds of questions if nothing is lost in truth: their sizes, sums and shares."""
    mean = found.rows / found.questions
    sizes = (*found.sizes, mean)
    sums = (*found.sums, mean)
    counts = (*found.counts, 1.0)
    shares = tuple(k / (found.questions + 1) / 2 for k in counts)
    return sizes * 2, (*sums, *(-s for s in sums)), shares * 2


def _spread(sums: Numbers, shares: Numbers, mean: float) -> float:
    """Variance of a question's difference, as its part of the mean over rows."""
    return sum(s * s * share for s, share in zip(sums, shares, strict=True)) / mean**2
