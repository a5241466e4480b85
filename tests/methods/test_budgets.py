"""Who keeps how many: the pyramid's line and the heads' shares, with exact totals."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.budgets import adaptive, pyramid

quick = settings(max_examples=200, deadline=None, derandomize=True)


@quick
@given(st.integers(1, 300), st.integers(1, 5000), st.integers(1, 48), st.integers(1, 30))
def test_a_pyramid_is_a_line_with_an_exact_total(count, room, num_layers, beta):
    room = max(room, count)
    counts = pyramid(count, room, num_layers, beta)
    assert sum(counts) == count * num_layers
    assert list(counts) == sorted(counts, reverse=True)
    assert max(counts) <= room
    assert min(counts) >= min(count, 1)
    first, last = counts[0], counts[-1]
    for layer, kept in enumerate(counts):
        if num_layers > 1 and len(set(counts)) > 1:
            line = first + Fraction(last - first, num_layers - 1) * layer
            assert abs(kept - line) <= 1


def test_pyramids_by_hand():
    assert pyramid(96, 992, 32)[0] == 188
    assert pyramid(96, 992, 32)[-1] == 4
    assert pyramid(10, 100, 3, beta=2) == (15, 10, 5)
    assert pyramid(10, 12, 3, beta=2) == (10, 10, 10)  # not room for twice as many
    assert pyramid(10, 20, 4, beta=20) == (19, 13, 7, 1)
    assert pyramid(7, 100, 1) == (7,)
    assert pyramid(0, 0, 3) == (0, 0, 0)


def by_hand(scores, count, floor, normalize):
    """Shares of [H][N] descending scores in plain arithmetic."""
    heads = len(scores)
    if normalize:
        weights = [sum(row[:count]) / sum(row) if sum(row) else 1.0 for row in scores]
        scores = [[x * w for x in row] for row, w in zip(scores, weights, strict=True)]
    entries = [(-x, rank, head) for head, row in enumerate(scores) for rank, x in enumerate(row)]
    won = [head for _, _, head in sorted(entries)[: heads * count]]
    share = [won.count(h) * (1 - Fraction(str(floor))) + count * Fraction(str(floor))
             for h in range(heads)]  # fmt: skip
    whole = [int(x) for x in share]
    rest = heads * count - sum(whole)
    for head in sorted(range(heads), key=lambda h: (whole[h] - share[h], h))[:rest]:
        whole[head] += 1
    return whole


@quick
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40),
       st.sampled_from([0, 0.1, 0.2, 0.5, 1]), st.booleans())  # fmt: skip
def test_heads_share_by_their_pooled_scores(seed, heads, length, floor, normalize):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, heads, length, generator=generator, dtype=torch.float64) ** 3
    scores = scores.sort(dim=-1, descending=True).values
    count = 1 + seed % length
    found = adaptive(scores, count, floor, normalize)
    assert found.sum(1).tolist() == [heads * count] * 2
    assert int(found.max()) <= length
    assert int(found.min()) >= int(count * floor)
    for item in range(2):
        assert found[item].tolist() == by_hand(scores[item].tolist(), count, floor, normalize)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_scores_share_evenly(value):
    found = adaptive(torch.full((1, 3, 10), value), 4)
    assert found.tolist() == [[4, 4, 4]]
