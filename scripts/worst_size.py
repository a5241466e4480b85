"""How often the test of paired differences is wrong at worst: exact sizes by enumeration.

    python -m scripts.simulate_statistics --only size

The truth is that the loss is the margin exactly, so that both "more" and "less" are wrong. One row
a question: all outcomes (lost, gained), at the worst share of questions that change. Questions of
2, 3 and 4 rows that fall together: those of one size may hold all that changes, so the large ones
are let do it.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import gammaln, xlogy

from harness.stats.paired import Paired

QUESTIONS = (3, 5, 8, 12, 20, 40, 80)
SIZES = (2, 3, 4)


def outcomes(pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """All (lost, gained) of so many questions."""
    lost, gained = np.indices((pairs + 1, pairs + 1)).reshape(2, -1)
    return lost[lost + gained <= pairs], gained[lost + gained <= pairs]


def changed(sizes: np.ndarray, largest: int, lost: int, gained: int) -> Paired:
    """Questions of these sizes, of which so many of the largest are lost and gained whole."""
    kinds, counts = np.unique(sizes[sizes != largest], return_counts=True)
    same = int((sizes == largest).sum()) - lost - gained
    own = [(-largest, lost), (0, same), (largest, gained)]
    own = [(value, count) for value, count in own if count]
    return Paired(
        (*map(float, kinds), *(float(largest) for _ in own)),
        (*(0.0 for _ in kinds), *(float(value) for value, _ in own)),
        (*map(float, counts), *(float(count) for _, count in own)),
    )


def exact(sizes: np.ndarray, margin: float, level: float) -> tuple[float, float]:
    """Worst chance of "loses less" and of "loses more than the margin" if it loses just that.

    The questions of the largest size change, lost or gained whole, at the worst share.
    """
    largest = int(sizes.max())
    pairs = int((sizes == largest).sum())
    loss = margin * float(sizes.sum()) / (pairs * largest)  # of those questions
    lost, gained = outcomes(pairs)
    found = [changed(sizes, largest, a, b) for a, b in zip(lost, gained, strict=True)]
    less = np.array([one.p_above(-margin) <= level for one in found])
    more = np.array([one.p_below(-margin) <= level for one in found])
    worst = np.zeros(2)
    ways = gammaln(pairs + 1) - sum(gammaln(k + 1) for k in (lost, gained, pairs - lost - gained))
    for share in np.unique(np.r_[np.linspace(loss, (1 + loss) / 2, 101), loss + 1e-3]):
        same = max(0.0, 1 - 2 * share + loss)
        logs = xlogy(lost, share) + xlogy(gained, share - loss) + xlogy(pairs - lost - gained, same)
        chance = np.exp(ways + logs)
        worst = np.maximum(worst, [chance[less].sum(), chance[more].sum()])
    return float(worst[0]), float(worst[1])


def lines(margin: float, level: float) -> Iterator[str]:
    """The table of exact sizes, in Markdown."""
    yield "| questions | rows of each | less than the margin | more |"
    yield "|---:" * 4 + "|"
    for questions in QUESTIONS:
        for sizes in (np.ones(questions, dtype=int), np.resize(SIZES, questions)):
            less, more = exact(sizes, margin, level)
            rows = "1" if sizes.max() == 1 else "2, 3, 4; the largest change"
            yield f"| {questions} | {rows} | {less:.3f} | {more:.3f} |"
