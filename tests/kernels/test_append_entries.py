"""New entries behind the last of every sequence, against one copy at a time."""

from __future__ import annotations

import pytest
import torch

from methods import kernels
from tests.kernels.oracles import DEVICE, DTYPES, draw
from tests.kernels.pools import make, meta

# counts, tiles a sequence, tile, new entries, head_dim of keys and of values
SHAPES = [
    ([3, 16, 0, 31, 15], [1, 2, 1, 2, 1], 16, 1, 40, 40),
    ([70, 1, 64, 127], [2, 1, 2, 3], 64, 5, 128, 64),
    ([15, 0], [4, 4], 16, 37, 7, 16),
]


def shipped(dtype, dim):
    """A token of cells that remember something, on meta tensors."""
    pool = meta(dtype, dim, 64, 40, True)
    entries = torch.empty(64, 1, dim, dtype=dtype, device="meta")
    first = torch.empty(1, dtype=torch.int64, device="meta")
    kernels.append_entries(*pool.tensors(), pool.table, pool.counts, entries, entries, first)


def plainly(pool, keys, values, first):
    for sequence, count in enumerate(pool.counts.tolist()):
        for i in range(keys.shape[1]):
            slot = pool.slot(sequence, count + i)
            if slot is None:
                continue
            pool.keys[slot] = keys[sequence, i]
            pool.values[slot] = values[sequence, i]
            pool.places[slot] = first + i
            if pool.carried is not None:
                pool.carried[slot] = 0.0


def check(pool, new, first=1000):
    keys = draw(1, len(pool.counts), new, pool.keys.shape[-1], seed=4, strided=True)[0]
    values = draw(1, len(pool.counts), new, pool.values.shape[-1], seed=5, strided=True)[0]
    keys, values = keys.to(pool.keys.dtype), values.to(pool.keys.dtype)
    wanted = pool.copy()
    plainly(wanted, keys, values, first)
    counts = pool.counts.clone()
    token = torch.tensor([first], device=DEVICE)
    for choice in ("triton", "torch"):
        got = pool.copy()
        with kernels.using(choice):
            kernels.append_entries(*got.tensors(), pool.table, counts, keys, values, token)
        assert got.same(wanted), choice
    assert torch.equal(counts, pool.counts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("counts", "blocks", "size", "new", "dim", "value_dim"), SHAPES)
def test_append_entries(counts, blocks, size, new, dim, value_dim, dtype):
    check(make(counts, blocks, size, dim, value_dim, dtype), new)


def test_nothing_is_carried():
    check(make([3, 16], [1, 2], 16, 32, 32, carried=False), 2)


def test_nothing_is_written_where_there_is_no_tile():
    """Neither where the table says so nor behind its end."""
    check(make([14, 16, 32, 0, 30], [1, 1, 2, 3, 3], 16, 32, 32), 5)
    check(make([0, 0], [0, 1], 16, 32, 32), 20)


def test_part_of_a_larger_table():
    pool = make([17, 3, 30], [2, 1, 2], 16, 24, 24)
    pool.table = torch.cat([pool.table, pool.table.flip(1)], 1)[:, :2]
    check(pool, 2)
