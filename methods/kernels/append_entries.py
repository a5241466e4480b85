"""Writing new entries behind the last ones of every sequence. Must not know who attends to them."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import load_rows
from .launch import by_triton, jit, launch, tl, triton
from .slots import copy_config, flat, slot_of, slots, store_rows


def append_entries(
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    carried: Tensor | None,
    table: Tensor,
    counts: Tensor,
    new_keys: Tensor,
    new_values: Tensor,
    first: Tensor,
    slot: Tensor | None = None,
) -> None:
    """Write new_keys [S, q, d] and new_values [S, q, dv] behind the entries of each sequence.

    The pool, in place: keys [T, tile, d], values [T, tile, dv], places int64 [T, tile], carried
    float32 [T, tile] or None, all contiguous. table: int32 [S, blocks], the tiles of a sequence, -1
    behind its last; nothing is written there. counts: int32 [S], entries that each has; it stays as
    it is. first: int64 [1] on the device, the place of the first new token; carried becomes 0. One
    launch reads and writes each new entry once; nothing in it depends on numbers of the host that
    change from token to token. slot: int64 [S], where the one new entry of
    each sequence goes, from callers that know it better than the table; for plain torch.
    """
    if by_triton(keys, values, new_keys, new_values):
        _by_triton(keys, values, places, carried, table, counts, new_keys, new_values, first)
        return
    rows, value_rows = new_keys.flatten(0, 1), new_values.flatten(0, 1)
    if slot is not None:
        place = first.expand(len(slot))
    else:
        new = torch.arange(new_keys.shape[1], device=keys.device)
        place = (first + new).repeat(len(counts))
        slot = slots(table, counts[:, None] + new, keys.shape[1]).flatten()
        kept = (slot >= 0).nonzero()[:, 0]
        slot, rows, value_rows, place = slot[kept], rows[kept], value_rows[kept], place[kept]
    flat(keys).index_copy_(0, slot, rows)
    flat(values).index_copy_(0, slot, value_rows)
    places.view(-1).index_copy_(0, slot, place)
    if carried is not None:
        carried.view(-1).index_fill_(0, slot, 0.0)


def _by_triton(
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    carried: Tensor | None,
    table: Tensor,
    counts: Tensor,
    new_keys: Tensor,
    new_values: Tensor,
    first: Tensor,
) -> None:
    sequences, new = new_keys.shape[:2]
    config = copy_config(keys, values, 1)
    rows, value_rows = flat(keys), flat(values)
    launch(
        _append_kernel,
        (triton.cdiv(sequences * new, config["ENTRIES"]),),
        rows,
        value_rows,
        places.view(-1),
        None if carried is None else carried.view(-1),
        table,
        counts.contiguous(),
        new_keys,
        new_values,
        first,
        sequences * new,
        new,
        table.shape[1],
        keys.shape[-1],
        values.shape[-1],
        *rows.stride(),
        *value_rows.stride(),
        *table.stride(),
        *new_keys.stride(),
        *new_values.stride(),
        SIZE=keys.shape[1],
        **config,
    )


@jit(varying=("total", "blocks", "t_sequence"))
def _append_kernel(
    keys,
    values,
    places,
    carried,
    table,
    counts,
    new_keys,
    new_values,
    first,
    total,
    new,
    blocks,
    dim,
    value_dim,
    k_slot,
    k_dim,
    v_slot,
    v_dim,
    t_sequence,
    t_block,
    nk_sequence,
    nk_entry,
    nk_dim,
    nv_sequence,
    nv_entry,
    nv_dim,
    SIZE: tl.constexpr,
    ENTRIES: tl.constexpr,
    K_DIMS: tl.constexpr,
    V_DIMS: tl.constexpr,
):
    """Some of the new entries of all sequences laid end to end."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < total
    sequence = (entry // new).to(tl.int64)
    i = entry % new
    # What is read does not wait for where it goes.
    at = sequence * nk_sequence + i * nk_entry
    key = load_rows(new_keys, at, inside, 1, dim, nk_dim, K_DIMS, False)
    at = sequence * nv_sequence + i * nv_entry
    value = load_rows(new_values, at, inside, 1, value_dim, nv_dim, V_DIMS, False)
    order = tl.load(counts + sequence, mask=inside, other=0) + i
    slot = slot_of(table + sequence * t_sequence, order, inside, t_block, blocks, SIZE)
    written = slot >= 0
    store_rows(keys, slot, written, key, k_slot, dim, k_dim, K_DIMS)
    store_rows(values, slot, written, value, v_slot, value_dim, v_dim, V_DIMS)
    tl.store(places + slot, tl.load(first) + i, mask=written)
    if carried is not None:
        tl.store(carried + slot, tl.zeros([ENTRIES], tl.float32), mask=written)
