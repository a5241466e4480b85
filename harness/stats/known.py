"""Sums and means of the numbers that are known: nan is what is not, and what nothing is known of.

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
