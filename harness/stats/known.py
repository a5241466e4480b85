"""Sums and means of those numbers that are known; nan stands for one that is not.

Knows arrays alone, and adds as pandas does; must not know what they are of.
"""

import numpy as np


def total(values: np.ndarray) -> float:
    """Their sum; nan where none is known."""
    there = ~np.isnan(values)
    return float(np.where(there, values, 0).sum()) if there.any() else float("nan")


def mean(values: np.ndarray) -> float:
    """Their mean; nan where none is known."""
    count = int(np.count_nonzero(~np.isnan(values)))
    return total(values) / count if count else float("nan")
