"""Entries copied into tiles, against one copy at a time; turns taken off, against float64."""

from __future__ import annotations

import pytest
import torch

from methods import kernels
from methods.kernels import Unturning
from tests.kernels.oracles import DEVICE, DTYPES, assert_close, draw

# tile, entries of each tile, heads, length, head_dim of keys and of values
SHAPES = [
    (16, [16, 3, 0, 1, 9], 3, 63, 40, 40),
    (64, [64, 0, 33], 2, 257, 128, 64),
    (16, [5], 1, 5, 7, 16),
    (64, [64, 1], 4, 130, 256, 256),
]
# rotary dims of head_dim, whether they are neighbours
TURNS = [(128, 128, False), (10, 24, False), (32, 80, True), (6, 6, True)]


def shipped(dtype, dim):
    """Without turns and with both kinds of them, on meta tensors."""
    keys = torch.empty(1, 8, 32768, dim, dtype=dtype, device="meta")
    turns = torch.empty(32768, dim, device="meta")
    for size, interleaved in ((64, None), (16, False), (64, True)):
        places = torch.empty(4096, size, dtype=torch.int64, device="meta")
        owner = torch.empty(4096, dtype=torch.int64, device="meta")
        unturning = Unturning(turns, turns, owner.bool(), interleaved)
        kernels.gather_entries(
            keys, keys, places, owner, None if interleaved is None else unturning
        )


def drawn(size, filled, heads, length):
    """places [T, tile] and owner [T]: some entries of each tile, at any of its slots."""
    generator = torch.Generator().manual_seed(5)
    places = torch.full((len(filled), size), -1)
    for tile, count in enumerate(filled):
        slots = torch.randperm(size, generator=generator)[:count]
        places[tile, slots] = torch.randint(length, (count,), generator=generator)
    owner = torch.randint(7 * heads, (len(filled),), generator=generator)
    return places.to(DEVICE), owner.to(DEVICE)


def plainly(entries, places, owner):
    out = torch.zeros(*places.shape, entries.shape[-1], dtype=entries.dtype, device=DEVICE)
    for tile, row in enumerate(places.tolist()):
        for slot, place in enumerate(row):
            if place >= 0:
                out[tile, slot] = entries[0, int(owner[tile]) % entries.shape[1], place]
    return out


def both(*arguments):
    """What the kernel and what its twin give."""
    for choice in ("triton", "torch"):
        with kernels.using(choice):
            yield kernels.gather_entries(*arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "filled", "heads", "length", "dim", "value_dim"), SHAPES)
def test_gather_entries(size, filled, heads, length, dim, value_dim, dtype):
    keys = draw(1, heads, length, dim, seed=1, dtype=dtype, strided=True)
    values = draw(1, heads, length, value_dim, seed=2, dtype=dtype, strided=True)
    places, owner = drawn(size, filled, heads, length)
    for got in both(keys, values, places, owner):
        assert all(each.is_contiguous() for each in got)
        assert torch.equal(got[0], plainly(keys, places, owner))
        assert torch.equal(got[1], plainly(values, places, owner))


def turned(length, dim, scale=1.3):
    """Cosines and sines [L, dim] as models make them, times the factor of YaRN and others."""
    angles = torch.rand(length, dim // 2, generator=torch.Generator().manual_seed(6)) * 6
    return [(each * scale).to(DEVICE) for each in (angles.cos(), angles.sin())]


def rotated(plain, cosines, sines, pairs):
    """plain [..., L, d] with each pair of dims turned, in float64."""
    out = plain.double()
    for i, (one, other) in enumerate(pairs):
        cos, sin = cosines[:, i].double(), sines[:, i].double()
        first, second = plain[..., one].double(), plain[..., other].double()
        out[..., one] = first * cos - second * sin
        out[..., other] = second * cos + first * sin
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rotary", "dim", "interleaved"), TURNS)
def test_turns_are_taken_off(rotary, dim, interleaved, dtype):
    length, half = 63, rotary // 2
    cosines, sines = turned(length, rotary)
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + half) for i in range(half)]
    plain = draw(1, 2, length, dim, seed=1)
    keys = rotated(plain, cosines, sines, pairs).to(dtype).transpose(1, 2).contiguous()
    keys = keys.transpose(1, 2)
    wide = [
        each.repeat_interleave(2, 1) if interleaved else each.repeat(1, 2)
        for each in (cosines, sines)
    ]
    places, owner = drawn(16, [16, 9, 0, 12], 2, length)
    own = torch.tensor([True, False, True, True], device=DEVICE)
    stored, wanted = plainly(keys, places, owner), plainly(plain, places, owner)
    wanted[..., rotary:] = stored[..., rotary:]
    for got, _ in both(keys, keys, places, owner, Unturning(*wide, own, interleaved)):
        assert_close(got[own], wanted[own], dtype)
        assert torch.equal(got[~own], stored[~own])
        assert torch.equal(got[..., rotary:], stored[..., rotary:])
    wanted[~own] = plainly(plain, places[~own], owner[~own])
    wanted[..., rotary:] = stored[..., rotary:]
    for got, _ in both(keys, keys, places, owner, Unturning(*wide, None, interleaved)):
        assert_close(got, wanted, dtype)


def test_cosines_and_sines_of_halves_may_differ():
    keys, turns = draw(1, 1, 9, 12, seed=1), [draw(9, 8, seed=seed) for seed in (2, 3)]
    places, owner = drawn(16, [8], 1, 9)
    cos, sin, key = (plainly(each.expand(1, 1, 9, -1), places, owner) for each in (*turns, keys))
    key, cos, sin = key[..., :8].double(), cos.double(), sin.double()
    half = torch.cat([-key[..., 4:], key[..., :4]], -1)
    wanted = (key * cos - half * sin) / (cos * cos + sin * sin)
    for got, _ in both(keys, keys, places, owner, Unturning(*turns)):
        held = places >= 0
        assert_close(got[held][:, :8], wanted[held], torch.float32)


def test_no_tile():
    keys = draw(1, 2, 9, 32, seed=1)
    places = torch.empty(0, 16, dtype=torch.int64, device=DEVICE)
    for got, _ in both(keys, keys, places, places[:, 0]):
        assert got.shape == (0, 16, 32)
