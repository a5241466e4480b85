"""The entry that a held budget drops, against a sort in float64 of one sequence at a time."""

from __future__ import annotations

import pytest
import torch

from methods import kernels
from methods.kernels.lowest_entries import BY_AGE, BY_MEAN, BY_PLACE, BY_ROW, BY_SUM
from tests.kernels.oracles import DEVICE
from tests.kernels.pools import make, meta

HEADS, GROUP = 2, 3
GIVEN = [5, 30]  # places that go; the tenth sequence has 9, 12, 15, ...


def shipped(dtype, dim):
    """A step of cells that hold their budget, on meta tensors."""
    pool = meta(dtype, dim, 64, 40, True)
    listed = torch.empty(32, dtype=torch.int64, device="meta")
    rules = torch.empty(32, 3, dtype=torch.int64, device="meta")
    for rows in (torch.empty(64 * 40, 7, 64, device="meta"), None):
        carried = None if rows is None else pool.carried
        kernels.lowest_entries(
            pool.places, rows, carried, pool.table, pool.counts, listed, rules, 4, 1, 2000, listed
        )


def expected(pool, weights, sequences, rules, tokens, seen):
    """Orders, and what is carried afterwards."""
    carried, orders = pool.carried.double(), []
    for sequence, (kind, low, recent) in zip(sequences, rules, strict=True):
        entries = [pool.slot(sequence, i) for i in range(int(pool.counts[sequence]))]
        places = [int(pool.places[slot]) for slot in entries]
        standing = []
        for i, (tile, place) in enumerate(entries):
            rows = weights[tile, :, place].double().view(GROUP, tokens)
            if kind in (BY_SUM, BY_MEAN):
                carried[tile, place] += rows.sum() / (GROUP if kind == BY_MEAN else 1)
            others = [pool.slot(sequence // HEADS * HEADS + h, i) for h in range(HEADS)]
            newest = [weights[t, tokens - 1 :: tokens, p].double() for t, p in others]
            standing.append(
                {BY_AGE: places[i], BY_ROW: float(torch.stack(newest).mean())}.get(
                    kind, float(carried[tile, place])
                )
            )
        if kind == BY_PLACE:
            orders.append(places.index(GIVEN[low]))
            continue
        free = [
            torch.inf if place < low or place >= seen - recent else each
            for place, each in zip(places, standing, strict=True)
        ]
        orders.append(min(range(len(free)), key=lambda i: (free[i], -places[i])))
    return orders, carried


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("size", [16, 64])
def test_the_entry_of_lowest_standing_goes(tokens, size):
    counts = [40, 40, 3, 3, 700, 700, 17, 17, 16, 16]
    pool = make(counts, [count // size + 1 for count in counts], size, 8, 8)
    draw = torch.Generator().manual_seed(4)
    weights = torch.rand(len(pool.places), GROUP * tokens, size, generator=draw)
    weights = (8 * weights).round().div(8).to(DEVICE)  # with many ties
    seen = 2101
    sequences = [4, 5, 0, 1, 6, 7, 3, 8, 9]
    rules = [
        *((BY_SUM, 4, 700), (BY_MEAN, 0, 0), (BY_ROW, 0, 1), (BY_ROW, 0, 2050)),
        *((BY_AGE, 4, 0), (BY_AGE, 10_000, 0), (BY_MEAN, 0, 5_000), (BY_SUM, 0, 2090)),
        (BY_PLACE, 1, 0),
    ]
    orders, carried = expected(pool, weights, sequences, rules, tokens, seen)
    listed, told = (torch.tensor(each, device=DEVICE) for each in (sequences, rules))
    for choice in ("triton", "torch"):
        got = pool.copy()
        with kernels.using(choice):
            found = kernels.lowest_entries(
                got.places, weights, got.carried, got.table, got.counts, listed, told,
                HEADS, tokens, seen, torch.tensor(GIVEN, device=DEVICE),
            )  # fmt: skip
        assert found[:, 0].tolist() == orders, choice
        torch.testing.assert_close(got.carried, carried.float(), rtol=1e-6, atol=1e-6)
