"""Several new tokens at once: each sees what came before it, whatever the heads share."""

from __future__ import annotations

import pytest
import torch

from harness.engine.cache import CompactLayer
from harness.engine.tiles import Tiles

DIM, KEPT = 6, 90


def by_hand(query, key, value, scaling):
    """Attention [H, q, d] of the last queries to all keys [n, d] of one head, in float64."""
    logits = query.double() @ key.double().T * scaling
    future = torch.ones(query.shape[1], len(key)).triu(1 + len(key) - query.shape[1]).bool()
    return logits.masked_fill(future, -torch.inf).softmax(-1) @ value.double()


@pytest.mark.parametrize("new", [3, 4])
@pytest.mark.parametrize("heads", [16, 40, 71])
def test_heads_that_share_one_key_see_no_later_token(heads, new):
    """As many as multi-query models have: few tokens go by at once then."""
    keys, values = torch.randn(1, 1, KEPT, DIM), torch.randn(1, 1, KEPT, DIM)
    tiles = Tiles.gather(keys, values, [torch.arange(KEPT)[None]], [[KEPT]], [None])
    layer = CompactLayer(tiles, 1, KEPT)
    query = torch.randn(1, heads, new, DIM)
    more = torch.randn(1, 1, new, DIM), torch.randn(1, 1, new, DIM)
    layer.update(*more)
    found = layer.attend(query, *more, 0.7)
    every = (torch.cat(pair, 2)[0, 0] for pair in zip((keys, values), more, strict=True))
    wanted = by_hand(query[0], *every, 0.7).transpose(0, 1)[None]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.share(query, 0.7), found)
