"""Copying kept entries of a prompt's cache into tiles. Must not know who chose them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import load_rows
from .launch import by_triton, jit, launch, tl, triton
from .slots import copy_config, store_rows


class Unturning(NamedTuple):
    """The rotary positions that are taken off keys while they are copied.

    cosines, sines: float32 [L, dim], what keys were turned by at each place; their first `dim`
    elements were, an even number. turned: bool [T], the tiles it is about; None: all. interleaved:
    whether a rotation pairs neighbouring elements, otherwise those of the two halves.
    """

    cosines: Tensor
    sines: Tensor
    turned: Tensor | None = None
    interleaved: bool = False


def gather_entries(
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    owner: Tensor,
    turns: Unturning | None = None,
) -> tuple[Tensor, Tensor]:
    """Entries of keys and values [1, heads, L, d] in tiles: [T, tile, d] and [T, tile, dv].

    places: int64 [T, tile], the place of each entry in 0..L - 1; -1: none, and zeros there. owner:
    int64 [T], tiles of head owner % heads. turns: store keys as (k cos - rotate_half(k) sin) /
    (cos^2 + sin^2), computed in float32, which also takes off a factor in cosines and sines. The
    kernel reads and writes each entry once, all cells and K and V in one launch.
    """
    if by_triton(keys, values):
        return _by_triton(keys, values, places, owner, turns)
    head = (owner % keys.shape[1])[:, None]
    place, absent = places.clamp_min(0), (places < 0)[..., None]
    taken = keys[0][head, place]  # [T, tile, d]
    if turns is not None:
        plain = _unturned(taken, turns.cosines[place], turns.sines[place], turns.interleaved)
        if turns.turned is not None:
            plain = torch.where(turns.turned[:, None, None], plain, taken)
        taken = plain
    return taken.masked_fill(absent, 0), values[0][head, place].masked_fill(absent, 0)


def _unturned(keys: Tensor, cosines: Tensor, sines: Tensor, interleaved: bool) -> Tensor:
    """keys [..., d] without turns [..., dim]."""
    dim = cosines.shape[-1]
    turned, cos, sin = keys[..., :dim].float(), cosines.float(), sines.float()
    pairs = turned.unflatten(-1, (-1, 2) if interleaved else (2, -1))
    first, second = pairs.unbind(-1 if interleaved else -2)
    half = torch.stack([-second, first], -1 if interleaved else -2).flatten(-2)
    plain = (turned * cos - half * sin) / (cos * cos + sin * sin)
    return torch.cat([plain.to(keys.dtype), keys[..., dim:]], -1)


def _by_triton(
    keys: Tensor, values: Tensor, places: Tensor, owner: Tensor, turns: Unturning | None
) -> tuple[Tensor, Tensor]:
    dim, size = keys.shape[-1], places.shape[1]
    gathered = [pool.new_empty(*places.shape, pool.shape[-1]) for pool in (keys, values)]
    config = copy_config(keys, values, 2)
    cosines = sines = turned = None
    interleaved, half = False, 0
    strides: tuple[int, ...] = (0, 0, 0, 0)
    if turns is not None:
        cosines, sines, turned, interleaved = turns
        turned = None if turned is None else turned.contiguous()
        strides = (*cosines.stride(), *sines.stride())
        half = cosines.shape[-1] // 2
    rest = dim - 2 * half if half else 0
    launch(
        _gather_kernel,
        (triton.cdiv(places.numel(), config["ENTRIES"]),),
        keys,
        values,
        places.contiguous(),
        owner.contiguous(),
        cosines,
        sines,
        turned,
        *gathered,
        places.numel(),
        keys.shape[1],
        dim,
        values.shape[-1],
        half,
        *keys.stride()[1:],
        *values.stride()[1:],
        *strides,
        SIZE=size,
        INTERLEAVED=interleaved,
        HALF=triton.next_power_of_2(half) if half else 0,
        REST=triton.next_power_of_2(rest) if rest else 0,
        **config,
    )
    return gathered[0], gathered[1]


@jit
def _gather_kernel(
    keys,
    values,
    places,
    owner,
    cosines,
    sines,
    turned,
    gathered_keys,
    gathered_values,
    total,
    heads,
    dim,
    value_dim,
    half,
    k_head,
    k_key,
    k_dim,
    v_head,
    v_key,
    v_dim,
    c_key,
    c_dim,
    s_key,
    s_dim,
    SIZE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    ENTRIES: tl.constexpr,
    K_DIMS: tl.constexpr,
    V_DIMS: tl.constexpr,
):
    """Some slots of the tiles laid end to end; a tile may be shared, and a program have several."""
    slot = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    inside = slot < total
    place = tl.load(places + slot, mask=inside, other=-1)
    head = tl.load(owner + slot // SIZE, mask=inside, other=0) % heads
    held = place >= 0
    at = head * v_head + place * v_key
    value = load_rows(values, at, held, 1, value_dim, v_dim, V_DIMS, False)
    at = head * k_head + place * k_key
    taken = held
    if turned is not None:
        taken &= tl.load(turned + slot // SIZE, mask=inside, other=0).to(tl.int1)
    if HALF == 0:
        key = load_rows(keys, at, held, 1, dim, k_dim, K_DIMS, False)
        store_rows(gathered_keys, slot, inside, key, dim, dim, 1, K_DIMS)
    elif INTERLEAVED:
        key = load_rows(keys, at, held, 1, dim, k_dim, K_DIMS, False)
        even, odd = tl.split(tl.reshape(key, [ENTRIES, K_DIMS // 2, 2]))
        d = tl.arange(0, K_DIMS)[None]
        sign = tl.where(d % 2 == 0, 1.0, -1.0)
        cos = load_rows(cosines, place, taken, c_key, 2 * half, c_dim, K_DIMS, False)
        sin = load_rows(sines, place, taken, s_key, 2 * half, s_dim, K_DIMS, False)
        taken = taken[:, None] & (d < 2 * half)
        key = _plain(key, tl.interleave(odd, even), cos, sin, sign, taken)
        store_rows(gathered_keys, slot, inside, key, dim, dim, 1, K_DIMS)
    else:
        first = load_rows(keys, at, held, 1, half, k_dim, HALF, False)
        second = load_rows(keys + half * k_dim, at, held, 1, half, k_dim, HALF, False)
        cos = load_rows(cosines, place, taken, c_key, half, c_dim, HALF, False)
        sin = load_rows(sines, place, taken, s_key, half, s_dim, HALF, False)
        key = _plain(first, second, cos, sin, 1.0, taken[:, None])
        store_rows(gathered_keys, slot, inside, key, dim, half, 1, HALF)
        cos = load_rows(cosines + half * c_dim, place, taken, c_key, half, c_dim, HALF, False)
        sin = load_rows(sines + half * s_dim, place, taken, s_key, half, s_dim, HALF, False)
        key = _plain(second, first, cos, sin, -1.0, taken[:, None])
        store_rows(gathered_keys + half, slot, inside, key, dim, half, 1, HALF)
        if REST:
            behind = 2 * half
            key = load_rows(keys + behind * k_dim, at, held, 1, dim - behind, k_dim, REST, False)
            store_rows(gathered_keys + behind, slot, inside, key, dim, dim - behind, 1, REST)
    store_rows(gathered_values, slot, inside, value, value_dim, value_dim, 1, V_DIMS)


@jit
def _plain(own, other, cos, sin, sign, taken):
    """Elements `own` [N, D] without their turn, which mixed in the `other` of each pair."""
    cos, sin = cos.to(tl.float32), sin.to(tl.float32)
    size = cos * cos + sin * sin
    size = tl.where(size > 0.0, size, 1.0)  # there is none where nothing is taken off
    plain = (own.to(tl.float32) * cos + sign * other.to(tl.float32) * sin) / size
    return tl.where(taken, plain.to(own.dtype), own)
