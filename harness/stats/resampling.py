"""Cluster bootstrap of ratios of sums: means over rows, and quotients of two means.

Knows matrices of rows and their questions; must not know cells or frames of samples.
"""

import numpy as np
from scipy.stats import bootstrap

BATCH = 256  # resamples at once: some megabytes at 1,500 questions
COLUMNS = 128  # ratios at once: 10 MB of bootstrap distribution, of which scipy sorts copies


def ratio_intervals(
    numerators: np.ndarray,
    denominators: np.ndarray,
    questions: np.ndarray,
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> np.ndarray:
    """Two-sided BCa intervals of sum(numerator) / sum(denominator), questions resampled whole.

    scipy's bootstrap, on the numbers of the questions: a resample becomes the counts of how often
    each question was drawn, and all ratios of all resamples are then two products of matrices with
    the sums by question. The same call on the sums themselves gathers every question of every
    ratio and resample: the same limits to the last digit, many times as long. Ratios over the same
    questions share their resamples.

    A bootstrap knows only what it has seen: where few questions changed it is too narrow
    (`scripts.simulate_statistics` says how much), where none did it is a point.

    Args:
        numerators: float64 [ratios, rows], nan where a ratio does not have the row.
        denominators: float64 [ratios, rows]; ones for a mean.
        questions: [rows], the question of each.
        resamples: their number.
        seed: of the resamples.
        confidence: coverage aimed at.

    Returns:
        float64 [ratios, 2]: (low, high). The ratio itself twice where all questions say the same;
        nan without rows, and where the denominator is not above 0 in all resamples.
    """
    known = ~np.isnan(numerators)
    codes = np.unique(questions, return_inverse=True)[1]
    count = int(codes.max(initial=-1)) + 1
    above = _by_question(np.where(known, numerators, 0.0), codes, count)
    below = _by_question(np.where(known, denominators, 0.0), codes, count)
    there = _by_question(known.astype(float), codes, count) > 0
    limits = np.full((len(numerators), 2), np.nan)
    for pattern in np.unique(there, axis=0):
        same = np.flatnonzero((there == pattern).all(axis=1))
        for start in range(0, same.size if pattern.any() else 0, COLUMNS):
            some = same[start : start + COLUMNS]
            limits[some] = _shared(
                above[np.ix_(some, pattern)], below[np.ix_(some, pattern)],
                resamples, seed, confidence,
            )  # fmt: skip
    return limits


def _by_question(values: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """Sums over the rows of each question: [ratios, questions]."""
    sums = np.zeros((len(values), count))
    for ratio, row in enumerate(values):
        sums[ratio] = np.bincount(codes, row, minlength=count)
    return sums


def _shared(
    above: np.ndarray, below: np.ndarray, resamples: int, seed: int, confidence: float
) -> np.ndarray:
    """Intervals of ratios over the same questions, given sums by question [ratios, questions]."""
    sums, whole = above.sum(axis=1), below.sum(axis=1)
    positive = whole > 0
    ratio = np.divide(sums, whole, out=np.full(len(sums), np.nan), where=positive)
    limits = np.column_stack([ratio, ratio])
    apart = above - ratio[:, None] * below
    varied = positive & (np.abs(apart).max(axis=1) > 1e-12 * np.abs(above).max(axis=1))
    if not varied.any():
        return limits
    above, below = above[varied], below[varied]
    count = above.shape[1]
    sound = np.ones(len(above), dtype=bool)

    def statistic(picked: np.ndarray, axis: int) -> np.ndarray:
        drawn = np.atleast_2d(picked)  # [resamples, questions], numbers of questions
        place = drawn + count * np.arange(len(drawn))[:, None]
        counts = np.bincount(place.ravel(), minlength=count * len(drawn)).reshape(-1, count)
        weights = counts.T.astype(float)
        top, bottom = above @ weights, below @ weights  # [ratios, resamples]
        safe = bottom > 0
        sound[~safe.all(axis=1)] = False
        # Rounded, or the last digit of the products would tear apart equal values that BCa counts.
        ratios = np.round(top / np.where(safe, bottom, 1.0), 12)
        return ratios[:, 0] if picked.ndim == 1 else ratios

    found = bootstrap(
        (np.arange(count),),
        statistic,
        n_resamples=resamples,
        batch=BATCH,
        vectorized=True,
        axis=-1,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    both = np.column_stack([found.low, found.high])
    both[~sound] = np.nan
    limits[varied] = both
    return limits
