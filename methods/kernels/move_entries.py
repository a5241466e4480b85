"""Closing the gaps that evicted entries leave. Must not know who evicted them."""

from __future__ import annotations

from torch import Tensor

from .blocks import load_rows
from .launch import by_triton, jit, launch, tl, triton
from .slots import copy_config, flat, slot_of, slots, store_rows


def move_entries(
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    carried: Tensor | None,
    table: Tensor,
    sequences: Tensor,
    movers: Tensor,
    targets: Tensor,
    ends: Tensor,
) -> None:
    """Copy entries movers [s, i] over entries targets [s, i], then give `ends` the place -1.

    Orders within each of the `sequences` int64 [s], all int64 [s, m]. Movers are among the ends; a
    target is its own mover, which then stays where it is, or no mover at all, and no two are the
    same. The pool, in place: keys [T, tile, d], values [T, tile, dv], places int64 [T, tile],
    carried float32 [T, tile] or None, all contiguous. table: int32 [S, blocks], the tiles of a
    sequence. One launch reads and writes each moved entry once.
    """
    if by_triton(keys, values):
        _by_triton(keys, values, places, carried, table, sequences, movers, targets, ends)
        return
    own, size = table[sequences], keys.shape[1]
    source, target, last = (slots(own, each, size).flatten() for each in (movers, targets, ends))
    for pool in (flat(keys), flat(values), places.view(-1)):
        pool.index_copy_(0, target, pool[source])
    if carried is not None:
        carried.view(-1).index_copy_(0, target, carried.view(-1)[source])
    places.view(-1).index_fill_(0, last, -1)


def _by_triton(
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    carried: Tensor | None,
    table: Tensor,
    sequences: Tensor,
    movers: Tensor,
    targets: Tensor,
    ends: Tensor,
) -> None:
    total, m = movers.shape
    if not total * m:
        return
    config = copy_config(keys, values, 1)
    pairs = min(config["ENTRIES"], triton.next_power_of_2(m))
    rows, value_rows = flat(keys), flat(values)
    launch(
        _move_kernel,
        (triton.cdiv(total * pairs, config["ENTRIES"]), triton.cdiv(m, pairs)),
        rows,
        value_rows,
        places.view(-1),
        None if carried is None else carried.view(-1),
        table,
        sequences.contiguous(),
        movers.contiguous(),
        targets.contiguous(),
        ends.contiguous(),
        total,
        m,
        table.shape[1],
        keys.shape[-1],
        values.shape[-1],
        *rows.stride(),
        *value_rows.stride(),
        *table.stride(),
        SIZE=keys.shape[1],
        PAIRS=pairs,
        **config,
    )


@jit(varying=("total", "m", "blocks", "t_sequence"))
def _move_kernel(
    keys,
    values,
    places,
    carried,
    table,
    sequences,
    movers,
    targets,
    ends,
    total,
    m,
    blocks,
    dim,
    value_dim,
    k_slot,
    k_dim,
    v_slot,
    v_dim,
    t_sequence,
    t_block,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    ENTRIES: tl.constexpr,
    K_DIMS: tl.constexpr,
    V_DIMS: tl.constexpr,
):
    """PAIRS movers and targets of ENTRIES // PAIRS sequences.

    Any program may copy keys and values at any time: what one writes, a target that is not its own
    mover, no program reads. Places and carried of a sequence belong to the first of its programs
    alone, since marking ends overwrites what was to be copied.
    """
    lane = tl.arange(0, ENTRIES)
    row = tl.program_id(0) * (ENTRIES // PAIRS) + lane // PAIRS
    listed = row < total
    sequence = tl.load(sequences + row, mask=listed, other=0)
    table += sequence * t_sequence
    at = row.to(tl.int64) * m
    pair = tl.program_id(1) * PAIRS + lane % PAIRS
    inside = listed & (pair < m)
    source, target, moved = _pairs(movers, targets, at + pair, inside, table, t_block, blocks, SIZE)
    key = load_rows(keys, source, moved, k_slot, dim, k_dim, K_DIMS, False)
    value = load_rows(values, source, moved, v_slot, value_dim, v_dim, V_DIMS, False)
    if tl.program_id(1) == 0:  # before the stores, which wait for what is read above
        for start in range(0, m, PAIRS):
            pair = start + lane % PAIRS
            inside = listed & (pair < m)
            one, other, moves = _pairs(
                movers, targets, at + pair, inside, table, t_block, blocks, SIZE
            )
            place = tl.load(places + one, mask=moves)
            if carried is not None:
                tl.store(carried + other, tl.load(carried + one, mask=moves), mask=moves)
            tl.store(places + other, place, mask=moves)
        tl.debug_barrier()  # other threads may still read places that this one marks
        for start in range(0, m, PAIRS):
            pair = start + lane % PAIRS
            inside = listed & (pair < m)
            order = tl.load(ends + at + pair, mask=inside, other=-1)
            last = slot_of(table, order, inside, t_block, blocks, SIZE)
            tl.store(places + last, tl.full([ENTRIES], -1, tl.int64), mask=last >= 0)
    store_rows(keys, target, moved, key, k_slot, dim, k_dim, K_DIMS)
    store_rows(values, target, moved, value, v_slot, value_dim, v_dim, V_DIMS)


@jit
def _pairs(movers, targets, at, inside, table, t_block, blocks, SIZE: tl.constexpr):
    """Slots of the movers `at` [N] and of their targets, and whether an entry really moves."""
    order = tl.load(movers + at, mask=inside, other=-1)
    source = slot_of(table, order, inside, t_block, blocks, SIZE)
    order = tl.load(targets + at, mask=inside, other=-1)
    target = slot_of(table, order, inside, t_block, blocks, SIZE)
    return source, target, (source >= 0) & (target >= 0) & (source != target)
