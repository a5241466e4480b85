"""The probability behind Gaffke's test against closed forms, an integral and plain chance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from harness.stats.gaffke import below_zero


@pytest.mark.parametrize("kept", [1, 3, 40, 324, 100_000])
@pytest.mark.parametrize("lost", [1, 2, 30])
def test_two_kinds_are_a_beta(kept, lost):
    """P(lost share > d), from one in a million to one half."""
    for d in (1e-6, 0.001, 0.02, 0.5):
        got = below_zero((d - 1, d), (float(lost), float(kept)))
        assert got == pytest.approx(beta.sf(d, lost, kept), abs=1e-7)


def test_equal_values_are_a_fair_coin():
    for lost, gained in ((1, 1), (3, 9), (200, 180)):
        got = below_zero((-1.0, 1.0), (float(lost), float(gained)))
        assert got == pytest.approx(binom.sf(gained - 1, lost + gained - 1, 0.5), abs=1e-8)


@pytest.mark.parametrize(
    ("lost", "gained", "same"), [(1, 1, 1), (2, 1, 570), (30, 33, 1900), (9, 4, 20)]
)
def test_three_kinds_are_an_integral_over_a_beta(lost, gained, same):
    nodes, weights = np.polynomial.legendre.leggauss(600)
    changed = beta.ppf((nodes + 1) / 2, lost + gained, same)
    for d in (-0.3, -0.02, -1e-4):
        share = np.clip((1 + d / changed) / 2, 0, 1)
        want = float(weights @ beta.cdf(share, gained, lost)) / 2
        got = below_zero((-1 - d, 1 - d, -d), (float(lost), float(gained), float(same)))
        assert got == pytest.approx(want, abs=2e-6)


KINDS = st.lists(
    st.tuples(st.floats(-1, 1).filter(lambda v: abs(v) > 1e-3), st.integers(1, 30)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=10, deadline=None)
@given(KINDS)
def test_any_kinds_are_what_chance_gives(kinds):
    values, shapes = zip(*[(v, float(c)) for v, c in kinds], strict=True)
    drawn = np.random.default_rng(0).gamma(shapes, size=(10_000, len(shapes)))
    share = float((drawn @ np.array(values) <= 0).mean())
    got = below_zero(values, shapes)
    assert got == pytest.approx(share, abs=0.03)
    opposite = below_zero(tuple(-v for v in values), shapes)
    assert got + opposite == pytest.approx(1, abs=1e-7)


def test_without_both_signs_there_is_nothing_to_weigh():
    assert below_zero((), ()) == below_zero((0.0,), (3.0,)) == 1
    assert below_zero((-1.0, 0.0), (1.0, 4.0)) == 1
    assert below_zero((1.0, 0.0), (1.0, 4.0)) == 0
