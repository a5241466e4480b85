"""Gaffke's test of a bounded mean: the probability that it and its limits rest on.

Knows numbers alone; must not know questions, cells or frames.
"""

from functools import lru_cache
from math import exp, pi, sqrt

import numpy as np

STEP = 0.1  # of the trapezoidal rule, on the scale of the hyperbolic functions
END = 40.0  # where the path ends at the latest
BENDS = (-1.0, 1.0, 0.0)  # of the path: left, right, straight
COARSE = np.arange(0, END)
SOON = 6  # where it ends if the integrand falls like a normal density
# Of the logarithm of the saddle's place over the end of the line.
GRIDS = np.linspace(-40, 0, 65)[:-1], np.linspace(0, 0.625, 17)[:-1]
NOTHING = -34.0  # logarithm of what is too little to count
Numbers = tuple[float, ...]


@lru_cache(maxsize=200_000)
def below_zero(values: Numbers, shapes: Numbers) -> float:
    """P(sum of values x independent Gamma(shape, 1) variables <= 0), to about ten digits.

    With all shapes 1 that is the share of weightings, drawn evenly from all that add up to one, by
    which the weighted mean of the values is not above 0.

    Args:
        values: any order, equal ones best put together.
        shapes: above 0, one a value.
    """
    pairs = [(v, c) for v, c in zip(values, shapes, strict=True) if v]
    if not pairs or max(pairs)[0] < 0:
        return 1.0
    if min(pairs)[0] > 0:
        return 0.0
    if sum(v * c for v, c in pairs) < 0:
        return 1 - _rare([(-v, c) for v, c in pairs])
    return _rare(pairs)


def _rare(pairs: list[tuple[float, float]]) -> float:
    """The probability where the sum has a mean above 0, by the inversion of its transform.

    The path runs left of 0 through (about) the saddle point of the integrand. It is that hyperbola
    on which the integrand falls off soonest, so that nothing cancels and nothing oscillates.
    """
    v, c = np.array(pairs).T
    middle = _saddle(v, c)
    slopes = v / (1 - middle * v)
    second = float(c @ slopes**2) + 1 / middle**2
    third = 2 * float(c @ slopes**3) - 2 / middle**3
    width = 1 / sqrt(second)
    steepest = min(1.0, max(-1.0, third * width / (3 * second)))

    def path(bend: float | np.ndarray, place: np.ndarray) -> tuple[np.ndarray, ...]:
        """Where the path is, and the parts that the integrand's logarithm is made of."""
        line = middle + width * (bend * (np.cosh(place) - 1) + 1j * np.sinh(place))
        across, up = 1 - line.real[..., None] * v, line.imag[..., None] * v
        size = np.log(across**2 + up**2) @ c / -2 - np.log(np.abs(line)) + place
        return line, across, up, size

    bend, end = steepest, _reach(path(steepest, COARSE[:SOON])[-1])
    if end > SOON:
        bends = np.array((steepest, *BENDS))
        ends = [*map(_reach, path(bends[:, None], COARSE)[-1])]
        least = int(np.argmin(ends + 1.5 * (bends != steepest)))
        bend, end = bends[least], ends[least]
    place = np.arange(0, min(END, end), STEP)
    line, across, up, size = path(bend, place)
    angle = np.arctan2(up, across) @ c - np.angle(line)
    turn = width * (np.cosh(place) - 1j * bend * np.sinh(place)) * np.exp(-place)
    heights = (np.exp(size + 1j * angle) * turn).real
    return max(0.0, -STEP / pi * float(heights.sum() - heights[0] / 2))


def _reach(sizes: np.ndarray) -> float:
    """How far the integrand counts, by its logarithm at the first of `COARSE`; twice the end where
    it does not fall off before.
    """
    ends = np.flatnonzero(sizes < sizes[0] + NOTHING)
    last = COARSE[ends[0]] if ends.size else END
    return float(last) if sizes[: int(last)].max() < sizes[0] + 1 else 2 * END


def _saddle(v: np.ndarray, c: np.ndarray) -> float:
    """Where the integrand is about smallest left of 0, by the sign of a monotone derivative."""
    end = 1 / float(v.min())
    low = 0
    for grid in GRIDS:
        places = end * np.exp(grid[:, None] + low)
        beyond = (places * v / (1 - places * v)) @ c > 1
        low += grid[int(beyond.argmax()) - 1] if beyond.any() else grid[-1]
    return end * exp(low)
