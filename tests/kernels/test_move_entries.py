"""The last entries moved into the gaps of evicted ones, against one copy at a time."""

from __future__ import annotations

import random

import pytest
import torch

from methods import kernels
from tests.kernels.oracles import DEVICE, DTYPES
from tests.kernels.pools import make, meta

# counts, tiles a sequence, tile, evicted entries, head_dim of keys and of values
SHAPES = [
    ([3, 16, 1, 31, 15, 40, 17, 5, 9, 12], [1, 1, 1, 2, 2, 3, 2, 1, 1, 1], 16, 1, 40, 40),
    ([70, 5, 64, 127], [2, 1, 1, 2], 64, 5, 128, 64),
    ([75, 37, 41], [5, 3, 3], 16, 37, 7, 16),
    ([50, 61], [1, 1], 64, 29, 16, 16),
]


def shipped(dtype, dim):
    """Evictions of a held budget, on meta tensors."""
    pool = meta(dtype, dim, 64, 40, True)
    order = torch.empty(32, 1, dtype=torch.int64, device="meta")
    kernels.move_entries(*pool.tensors(), pool.table, order[:, 0], order, order, order)


def moves(counts, m, shuffled):
    """Which m entries of each sequence go, and the movers, targets and ends [s, m] for it."""
    rng = random.Random(7)
    gone, pairs, ends = [], [], []
    for count in counts:
        gone.append(set(rng.sample(range(count), m)))
        end = list(range(count - m, count))
        gaps = sorted(each for each in gone[-1] if each < count - m)
        stay = [each for each in end if each not in gone[-1]]
        own = [*zip(stay, gaps, strict=True), *((each, each) for each in end if each in gone[-1])]
        if shuffled:
            rng.shuffle(own)
            rng.shuffle(end)
        pairs.append(own)
        ends.append(end)
    movers, targets = torch.tensor(pairs).unbind(-1)
    return gone, movers, targets, torch.tensor(ends)


def plainly(pool, sequences, movers, targets, ends):
    before = pool.copy()
    for row, sequence in enumerate(sequences):
        for mover, target in zip(movers[row].tolist(), targets[row].tolist(), strict=True):
            source, slot = pool.slot(sequence, mover), pool.slot(sequence, target)
            for old, new in zip(before.tensors(), pool.tensors(), strict=True):
                if new is not None:
                    new[slot] = old[source]
        for end in ends[row].tolist():
            pool.places[pool.slot(sequence, end)] = -1


def check(pool, sequences, m, shuffled=True):
    counts = [pool.counts.tolist()[each] for each in sequences]
    gone, *orders = moves(counts, m, shuffled)
    wanted = pool.copy()
    plainly(wanted, sequences, *orders)
    arguments = [each.to(DEVICE) for each in (torch.tensor(sequences), *orders)]
    for choice in ("triton", "torch"):
        got = pool.copy()
        with kernels.using(choice):
            kernels.move_entries(*got.tensors(), pool.table, *arguments)
        assert got.same(wanted), choice
        for sequence, count, without in zip(sequences, counts, gone, strict=True):
            kept = {entry_of(pool, sequence, each) for each in range(count) if each not in without}
            assert kept == {entry_of(got, sequence, each) for each in range(count - m)}


def entry_of(pool, sequence, order):
    slot = pool.slot(sequence, order)
    key, value = pool.keys[slot].tolist(), pool.values[slot].tolist()
    return (int(pool.places[slot]), *key, *value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("counts", "blocks", "size", "m", "dim", "value_dim"), SHAPES)
def test_move_entries(counts, blocks, size, m, dim, value_dim, dtype):
    pool = make(counts, blocks, size, dim, value_dim, dtype)
    check(pool, list(range(len(counts))), m)
    check(pool, list(range(len(counts)))[::-2], m, shuffled=False)


def test_nothing_is_carried():
    check(make([20, 16], [2, 1], 16, 32, 32, carried=False), [1], 3)


def test_whole_sequences_go():
    check(make([5, 5, 16], [1, 1, 1], 16, 32, 32), [0, 1], 5)


def test_nothing_goes():
    pool = make([5], [1], 16, 32, 32)
    before, none = pool.copy(), torch.empty(1, 0, dtype=torch.int64, device=DEVICE)
    for choice in ("triton", "torch"):
        with kernels.using(choice):
            row = torch.zeros(1, dtype=torch.int64, device=DEVICE)
            kernels.move_entries(*pool.tensors(), pool.table, row, none, none, none)
        assert pool.same(before)
