"""Intervals of one mean score whose rows come in questions.

Knows arrays of scores and their questions; must not know cells or frames of samples.
"""

import numpy as np
import pandas as pd
from scipy.stats import norm, t
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint


def accuracy_interval(
    scores: pd.Series | np.ndarray, cluster: pd.Series | np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a mean score in [0, 1] when the rows of one question are not independent.

    A Wilson interval at the effective sample size: the cluster-robust variance V of the mean
    (statsmodels, clusters = questions, factor C / (C - 1)) gives n = p (1 - p) / V, for scores of
    0 and 1 at most the number of rows, reduced by (z / t with C - 1 degrees of freedom)^2 because
    V itself is an estimate from C questions (Korn and Graubard 1998, with Wilson's form in place of
    Clopper-Pearson's). Wilson and not Wald, because Wald collapses to a point at 0 and 1 and leaves
    [0, 1] near them.

    Where V says nothing (all scores the same, a single question) n is the number of
    questions, as if the rows of a question always fell together: wide rather than too narrow, so
    that a perfect score can have a lower end below that of a score with one slip.

    Args:
        scores: right and wrong as 1 and 0, or graded, one a row.
        cluster: the question of each row, same length.
        confidence: coverage aimed at.

    Returns:
        (low, high) as fractions in [0, 1] around the mean; (nan, nan) without rows, and where some
        score is not known.
    """
    values = np.asarray(scores, dtype=float)
    if values.size == 0 or np.isnan(values).any():
        return float("nan"), float("nan")
    questions = pd.factorize(np.asarray(cluster))[0]
    size = _effective_size(values, questions, confidence)
    low, high = proportion_confint(values.mean() * size, size, 1 - confidence, method="wilson")
    # Wilson's ends at 0 and 1 are exact in theory and off by an ulp in floating point.
    return min(max(0.0, float(low)), values.mean()), max(min(1.0, float(high)), values.mean())


def _effective_size(values: np.ndarray, questions: np.ndarray, confidence: float) -> float:
    share, count = values.mean(), int(questions.max()) + 1
    if np.ptp(values) == 0 or count == 1:
        return float(count)
    fit = OLS(values, np.ones(values.size)).fit(cov_type="cluster", cov_kwds={"groups": questions})
    variance = float(fit.bse[0]) ** 2
    # Graded scores spread less than 0 and 1 with the same mean: their rows can count for more.
    graded = bool(((values > 0) & (values < 1)).any())
    least = 1e-12 if graded else share * (1 - share) / values.size
    rows = share * (1 - share) / max(variance, least)
    tail = 0.5 + confidence / 2
    return float(rows * (norm.ppf(tail) / t.ppf(tail, count - 1)) ** 2)
