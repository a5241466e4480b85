"""The mean of paired differences whose rows come in questions: score test, interval and bounds.

Knows arrays of differences and their questions; must not know cells or frames of samples.
"""

from dataclasses import dataclass
from math import inf, isnan, nan, sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit


@dataclass(frozen=True)
class Paired:
    """What the score test needs of paired differences, each between -bound and bound.

    Tango's test (1998, Statistics in Medicine 17:891) of the difference of paired proportions asks
    how often only the one and only the other was right. Here the mean positive part `gain` and the
    mean negative part `loss` stand for those two shares, and the effective number of independent
    rows `size` for the number of pairs: for scores of 0 and 1 with a row a question it is Tango's
    test exactly, graded differences and questions of several rows are covered too. The interval
    holds the means that the test does not reject, so that it and the p-values never disagree.

    gain, loss: over all rows, as shares of `bound`. typical: size of a difference where there is
    one (the sum of their squares over that of their sizes), as a share of `bound`. rows, questions:
    their numbers. Everything is nan where there are no rows.
    """

    gain: float
    loss: float
    size: float
    typical: float
    rows: int
    questions: int
    bound: float = 1.0

    @property
    def difference(self) -> float:
        """The mean over rows."""
        return self.bound * (self.gain - self.loss)

    def deviation(self, mean: float | None = None) -> float:
        """Standard deviation of a question's difference if `mean` (the observed one) is the truth.

        That of the mean x the root of the number of questions, at the shares of gain and loss that
        are most likely among those with this mean: the larger root of Tango's quadratic.
        """
        delta = (self.difference if mean is None else mean) / self.bound
        linear = (2 - self.gain + self.loss) * delta - self.gain - self.loss
        constant = self.loss * delta * (1 - delta)
        twice = (sqrt(max(0.0, linear * linear + 8 * constant)) - linear) / 2
        spread = max(0.0, twice + delta - delta * delta)
        return self.bound * sqrt(spread / self.size * self.questions)

    def statistic(self, mean: float) -> float:
        """The score statistic of "the mean is `mean`": standard normal if so, large if above."""
        excess = self.difference - mean
        if excess == 0 or isnan(excess):
            return excess
        deviation = self.deviation(mean)
        return excess / deviation * sqrt(self.questions) if deviation > 0 else inf * excess

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Two-sided interval of the mean; (nan, nan) without rows."""
        tail = (1 - confidence) / 2
        return self.lower(tail), self.upper(tail)

    def lower(self, alpha: float) -> float:
        """The mean is above this with confidence 1 - alpha, one-sided."""
        return self._limit(-self.bound, float(ndtri(1 - alpha)))

    def upper(self, alpha: float) -> float:
        """The mean is below this with confidence 1 - alpha, one-sided."""
        return self._limit(self.bound, float(ndtri(alpha)))

    def p_above(self, mean: float) -> float:
        """One-sided p-value of "the true mean is at most `mean`": small where it is above.

        With the negative of a margin it is the test of non-inferiority.
        """
        return float(ndtr(-self.statistic(mean)))

    def p_equal(self, mean: float = 0.0) -> float:
        """Two-sided p-value of "the true mean is `mean`"."""
        return float(2 * ndtr(-abs(self.statistic(mean))))

    def _limit(self, end: float, quantile: float) -> float:
        if isnan(self.difference) or self.difference == end:
            return self.difference

        def above(mean: float) -> float:
            return max(-1e9, min(1e9, self.statistic(mean))) - quantile

        return float(brentq(above, end, self.difference, xtol=1e-13))


NOTHING = Paired(nan, nan, nan, nan, 0, 0)


def paired(differences: np.ndarray, questions: np.ndarray, bound: float = 1.0) -> Paired:
    """What the rows say of their mean difference.

    The effective number of rows is theirs over the design effect (Korn and Graubard 1998): the
    cluster-robust variance of the mean, clusters = questions, factor C / (C - 1), over the variance
    if all rows were independent and every difference 0 or 1, and times (t with rows - 1 over t with
    C - 1 degrees of freedom)^2. Only rows that differ tell it, and there may be few. So it is taken
    with one question more, of mean size, all of whose rows differ together, which no data has to
    show: with no difference at all the effective number is that of the questions, and it does not
    leap when the first row differs. Rows of a question never count for more than independent ones.

    Args:
        differences: [rows], each in [-bound, bound].
        questions: [rows], the question of each.
        bound: the largest possible difference: 1 for two cells, 2 for the difference of two
            differences.

    Returns:
        The summary; `NOTHING` without rows.

    Raises:
        ValueError: a difference beyond the bound, or nan.
    """
    values = np.asarray(differences, dtype=float) / bound
    rows = values.size
    if rows == 0:
        return NOTHING
    if not np.abs(values).max() <= 1 + 1e-9:
        raise ValueError(
            f"differences must lie between {-bound} and {bound}: give scores of 0 to 1"
        )
    codes = np.unique(questions, return_inverse=True)[1]
    count = int(codes.max()) + 1
    gain, loss = float(np.maximum(values, 0).mean()), float(np.maximum(-values, 0).mean())
    amount = (gain + loss) * rows
    typical = float(np.square(values).sum()) / amount if amount else 1.0
    size = float(count)
    if count > 1 and np.ptp(values) > 0:
        size = rows / _design_effect(values, codes, gain, loss, typical)
        size *= float(stdtrit(rows - 1, 0.975) / stdtrit(count - 1, 0.975)) ** 2
    return Paired(gain, loss, size, typical, rows, count, bound)


def _design_effect(
    values: np.ndarray, codes: np.ndarray, gain: float, loss: float, typical: float
) -> float:
    rows, count = values.size, int(codes.max()) + 1
    deviations = values - values.mean()
    clustered = count / (count - 1) * np.square(np.bincount(codes, deviations)).sum()
    independent = rows / (rows - 1) * np.square(deviations).sum()
    binary = rows / (rows - 1) * rows * (gain + loss - (gain - loss) ** 2)
    more = rows / count * typical
    return float((max(clustered, independent) + more**2) / (binary + more))
