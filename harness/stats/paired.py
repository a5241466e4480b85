"""The mean of paired differences whose rows come in questions: a test, its interval and bounds.

Knows arrays of differences and their questions; must not know cells or frames of samples.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import nan, sqrt

import numpy as np
from scipy.special import ndtri

from harness.stats.gaffke import Numbers, below_zero

FEW = 80  # up to so many questions the one that was not seen is as large as the largest


@dataclass(frozen=True)
class Paired:
    """Paired differences by question, each row's between -bound and bound.

    The test is Gaffke's (2005) of the mean of a bounded variable, a question an observation: one
    question more is added, all of whose rows are as bad for the claim as can be, and the p-value is
    the share of evenly drawn weightings of the questions by which the weighted mean is not above
    the mean in question. It takes rows that hang together and graded scores as they come. For
    scores of 0 and 1 and a row a question it is McNemar's exact test at 0, Clopper and Pearson's
    where all that changed is lost, and the exact test of Fay and Lumbard (2021) below 0. It is
    proven to keep its level in special cases only, but no case is known in which it does not;
    `scripts.simulate_statistics` enumerates.

    Questions may be of several sizes, and it may be the large ones that change. So the question
    more is of the largest size, and beyond `FEW` (Kish's effective number of) questions, of which
    the large ones show by themselves, between that and the mean size.

    Interval, bounds and p-values come from this one test and never disagree.

    sizes, sums, counts: rows and sum of differences (as a share of bound) of each kind of question,
    and how many there are. Nothing is known without rows: all numbers are nan.
    """

    sizes: Numbers
    sums: Numbers
    counts: Numbers
    bound: float = 1.0

    @property
    def rows(self) -> int:
        """Their number."""
        return round(sum(m * k for m, k in zip(self.sizes, self.counts, strict=True)))

    @property
    def questions(self) -> int:
        """Their number."""
        return round(sum(self.counts))

    @property
    def difference(self) -> float:
        """The mean over rows."""
        if not self.rows:
            return nan
        total = sum(s * k for s, k in zip(self.sums, self.counts, strict=True))
        return self.bound * total / self.rows

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Two-sided interval of the mean; (nan, nan) without rows."""
        tail = (1 - confidence) / 2
        return self.lower(tail), self.upper(tail)

    def lower(self, alpha: float) -> float:
        """The mean is above this with confidence 1 - alpha, one-sided."""
        return self.bound * _limit(self, alpha) if self.rows else nan

    def upper(self, alpha: float) -> float:
        """The mean is below this with confidence 1 - alpha, one-sided."""
        return -self.bound * _limit(self._mirrored(), alpha) if self.rows else nan

    def p_above(self, mean: float) -> float:
        """One-sided p-value of "the true mean is at most `mean`": small where it is above.

        With the negative of a margin it is the test of non-inferiority.
        """
        return _p_above(self, mean / self.bound) if self.rows else nan

    def p_below(self, mean: float) -> float:
        """One-sided p-value of "the true mean is at least `mean`": small where it is below."""
        return _p_above(self._mirrored(), -mean / self.bound) if self.rows else nan

    def p_equal(self, mean: float = 0.0) -> float:
        """Two-sided p-value of "the true mean is `mean`"."""
        return min(1.0, 2 * min(self.p_above(mean), self.p_below(mean))) if self.rows else nan

    def p_equivalent(self, margin: float) -> float:
        """P-value of "the true mean is `margin` or more away from 0": two one-sided tests."""
        return max(self.p_above(-margin), self.p_below(margin)) if self.rows else nan

    def _mirrored(self) -> "Paired":
        return Paired(self.sizes, tuple(-s for s in self.sums), self.counts, self.bound)


NOTHING = Paired((), (), ())


def paired(differences: np.ndarray, questions: np.ndarray, bound: float = 1.0) -> Paired:
    """The differences by question.

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
    if values.size == 0:
        return NOTHING
    if not np.abs(values).max() <= 1 + 1e-9:
        raise ValueError(
            f"differences must lie between {-bound} and {bound}: give scores of 0 to 1"
        )
    codes = np.unique(questions, return_inverse=True)[1]
    sizes = np.bincount(codes)
    sums = np.clip(np.bincount(codes, values).round(12), -sizes, sizes) + 0.0
    kinds, counts = np.unique(np.column_stack([sizes, sums]), axis=0, return_counts=True)
    return Paired(_floats(kinds[:, 0]), _floats(kinds[:, 1]), _floats(counts), bound)


def _floats(numbers: np.ndarray) -> Numbers:
    return tuple(map(float, numbers))


def unseen(sizes: Numbers, counts: Numbers) -> float:
    """Rows of the question more, of so many questions of these sizes."""
    rows = sum(m * k for m, k in zip(sizes, counts, strict=True))
    mean, largest = rows / sum(counts), max(sizes)
    effective = rows**2 / sum(m * m * k for m, k in zip(sizes, counts, strict=True))
    return mean + (largest - mean) * min(1.0, sqrt(FEW / effective))


def _p_above(found: Paired, mean: float) -> float:
    """P-value of "the true mean, as a share of the bound, is at most `mean`"."""
    sums = zip(found.sums, found.sizes, strict=True)
    values = (*(s - m * mean for s, m in sums), unseen(found.sizes, found.counts) * (-1 - mean))
    return below_zero(values, (*found.counts, 1.0))


@lru_cache(maxsize=100_000)
def _limit(found: Paired, alpha: float) -> float:
    """Where `_p_above` is alpha: the secant rule on normal scores, inside a bracket."""
    kinds = [*zip(found.sizes, found.sums, found.counts, strict=True)]
    highest = max(s / m for m, s, _ in kinds)
    if highest <= -1:
        return -1.0
    more = unseen(found.sizes, found.counts)
    kinds.append((more, -more, 1.0))
    rows = sum(m * k for m, _, k in kinds)
    middle = sum(s * k for _, s, k in kinds) / rows
    spread = sqrt(sum(k * (s - m * middle) ** 2 for m, s, k in kinds)) / rows
    target = float(ndtri(alpha))
    low, high = -1.0, highest
    mean, slope = middle + target * spread, 1 / spread
    last: tuple[float, float] | None = None
    for _ in range(100):
        if not low < mean < high:
            mean = (low + high) / 2
        score = max(-9.0, min(9.0, float(ndtri(_p_above(found, mean)))))
        if abs(score - target) < 1e-9 or high - low < 1e-12:
            break
        low, high = (mean, high) if score < target else (low, mean)
        if last and last[0] != mean and last[1] != score:
            slope = (score - last[1]) / (mean - last[0])
        last = mean, score
        mean += (target - score) / slope
    return mean
