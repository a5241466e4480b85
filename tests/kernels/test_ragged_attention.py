"""Attention over sequences of different lengths in tiles, against float64."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from methods import kernels
from methods.kernels.ragged_attention import Turning, ragged_attention
from tests.kernels.oracles import DTYPES, TOLERANCE, assert_close, draw
from tests.kernels.ragged_pool import Pool, turns

operation = import_module("methods.kernels.ragged_attention")  # a function has its name
LENGTHS = [1, 530, 16, 130]
EXACT = TOLERANCE[torch.float32]


def shipped(dtype, dim):
    """The launches of the published settings, on meta tensors."""
    for tile, blocks, rows, tokens, turned in (
        (64, 2049, 7, 1, False),
        (16, 16, 35, 5, False),
        (64, 2049, 7, 1, True),
    ):
        sequences, tiles = 124, 124 * blocks

        def meta(*shape, dtype):
            return torch.empty(shape, dtype=dtype, device="meta")

        turning = None
        if turned:
            table = meta(131072, dim, dtype=torch.float32)
            start = meta(sequences, dtype=torch.int64)
            ranks = meta(tiles, tile, dtype=torch.int32)
            turning = Turning(table, table, start, ranks, False)
        ragged_attention(
            meta(sequences, rows, dim, dtype=dtype),
            meta(tiles, tile, dim, dtype=dtype),
            meta(tiles, tile, dim, dtype=dtype),
            meta(tiles, tile, dtype=torch.int64),
            meta(sequences, blocks, dtype=torch.int32),
            meta(sequences, dtype=torch.int32),
            meta(tiles, dtype=torch.int64),
            meta(1, dtype=torch.int64),
            tokens,
            dim**-0.5,
            not turned,
            turning,
        )


def check(pool, queries, tokens, dtype, turning=None, factor=1.0):
    wanted, wanted_weights = pool.oracle(queries, tokens, 0.3, turning)
    got, weights = pool.attend(queries, tokens, 0.3, True, turning)
    assert got.dtype == dtype
    assert_close(got.flatten(0, 1), wanted.flatten(0, 1), dtype, factor)
    assert float((weights.double() - wanted_weights).abs().max()) < factor * TOLERANCE[dtype]
    assert not weights.transpose(1, 2)[pool.places < 0].any()
    with kernels.using("torch"):
        got, weights = pool.attend(queries, tokens, 0.3, True, turning)
        assert_close(got.flatten(0, 1), wanted.flatten(0, 1), dtype, factor)
        assert float((weights.double() - wanted_weights).abs().max()) < factor * EXACT
        assert not weights.transpose(1, 2)[pool.places < 0].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tile", "group", "tokens", "dim", "value_dim"),
    [(16, 7, 1, 40, 64), (64, 4, 5, 64, 40), (64, 1, 5, 128, 128), (16, 4, 1, 256, 256)],
)
def test_ragged_attention(tile, group, tokens, dim, value_dim, dtype):
    pool = Pool(LENGTHS, tile, dim, value_dim, dtype, tokens)
    queries = draw(len(LENGTHS), group * tokens, dim, seed=1, dtype=dtype)
    check(pool, queries, tokens, dtype)


@pytest.mark.parametrize("length", [64, 192, 1024])
def test_any_number_of_splits(length, monkeypatch):
    monkeypatch.setattr(operation, "_FEWEST", length)
    monkeypatch.setattr(operation, "_MOST", length)
    lengths, dtype = [1, 330, 20], torch.float16
    pool = Pool(lengths, 16, 32, 32, dtype, 2)
    queries = draw(len(lengths), 6, 32, seed=1, dtype=dtype)
    check(pool, queries, 2, dtype)
    outputs, _ = pool.attend(queries, 2, 0.3)
    alone, nothing = pool.attend(queries, 2, 0.3, rows=False)
    assert nothing is None
    assert torch.equal(alone, outputs)


def test_more_rows_than_a_program_takes():
    pool = Pool([70, 3], 16, 32, 32, torch.float32, 11)
    check(pool, draw(2, 22, 32, seed=1), 11, torch.float32)


@pytest.mark.parametrize(
    ("tile", "dim", "turned", "interleaved", "dtype"),
    [
        *((16, 64, 64, False, dtype) for dtype in DTYPES),
        *((64, 40, 24, True, dtype) for dtype in DTYPES),
        (64, 40, 24, False, torch.float16),
        (16, 64, 64, True, torch.float16),
    ],
)
def test_keys_that_are_turned(tile, dim, turned, interleaved, dtype):
    pool = Pool(LENGTHS, tile, dim, 32, dtype, 1)
    turning = turns(pool, turned, interleaved)
    check(pool, draw(len(LENGTHS), 4, dim, seed=1, dtype=dtype), 1, dtype, turning, 2.0)


def test_strided_pools():
    pool = Pool([70, 20], 16, 24, 24, torch.float32, 1)
    whole = pool.keys, pool.values
    queries = draw(2, 24, 8, seed=1).transpose(1, 2)
    wanted, _ = pool.oracle(queries, 1, 0.3)
    pool.keys, pool.values = (torch.stack([each, each], -1)[..., 0] for each in whole)
    got, _ = pool.attend(queries, 1, 0.3)
    assert_close(got.flatten(0, 1), wanted.flatten(0, 1), torch.float32)


def test_sums_in_a_fixed_order():
    pool = Pool([70, 20, 1], 16, 8, 8, torch.float32, 1)
    parts = draw(len(pool.owner), 3, 5, seed=1)
    wanted = torch.stack([parts[pool.owner == sequence].sum(0) for sequence in range(3)])
    for sums in (
        operation.padded_sum(parts, pool.table),
        operation.sum_by_sequence(parts, pool.table, pool.owner),
    ):
        torch.testing.assert_close(sums, wanted)
