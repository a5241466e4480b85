"""Which entry goes of each sequence that holds its budget. Must not know policies or cells."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import by_triton, jit, launch, tl
from .slots import slots

BY_AGE, BY_SUM, BY_MEAN, BY_ROW, BY_PLACE = range(5)  # what a standing is


def lowest_entries(
    places: Tensor,
    weights: Tensor | None,
    carried: Tensor | None,
    table: Tensor,
    counts: Tensor,
    sequences: Tensor,
    rules: Tensor,
    heads: int,
    tokens: int,
    seen: int,
    given: Tensor | None = None,
) -> Tensor:
    """The entry of lowest standing in each of the `sequences` int64 [s], int64 [s, 1]: its order.

    Of equals the newest. rules: int64 [s, 3], what the standing is, how many first positions stay
    whatever it is, and how many of the last of `seen`. BY_AGE: the position. BY_SUM, BY_MEAN: what
    is carried, to which the new rows of the sequence are added first, over its query heads their
    sum or mean. BY_ROW: the newest row, a mean over all query heads of the `heads` sequences of a
    cell, which hold the same places in the same order. BY_PLACE: lowest is the entry whose place is
    given; the second number is its index in `given` int64 [n].

    The pool: places int64 [T, tile], carried float32 [T, tile] or None, changed in place. weights:
    float32 [T, R, tile] or None, rows of R / tokens query heads for `tokens` new tokens. table
    int32 [S, blocks], counts int32 [S] as in ragged_attention. One launch reads each entry once for
    BY_AGE and its rows once for the others, those of a cell once a head for BY_ROW.
    """
    if by_triton(places.new_empty(1, dtype=torch.float32)):
        return _by_triton(
            places, weights, carried, table, counts, sequences, rules, heads, tokens, seen, given
        )
    kind, low, recent = (each[:, None] for each in rules.unbind(1))
    order = torch.arange(table.shape[1] * places.shape[1], device=places.device)
    slot = _slots(table, counts, sequences, order, places.shape[1])  # [s, n]
    place = torch.where(slot < 0, -1, places.view(-1)[slot])
    standing = place.float()
    if weights is not None:
        own = _rows(weights, slot, tokens)  # [s, g, tokens, n]
        total = own.sum((1, 2))
        total = torch.where(kind == BY_MEAN, total / own.shape[1], total)
        summed = (kind == BY_SUM) | (kind == BY_MEAN)
        if carried is not None:
            total = total + carried.view(-1)[slot]
            kept = (summed & (slot >= 0)).flatten().nonzero()[:, 0]
            carried.view(-1).index_copy_(0, slot.flatten()[kept], total.flatten()[kept])
        first = sequences // heads * heads
        newest = [
            _rows(weights, _slots(table, counts, first + head, order, places.shape[1]), tokens)
            for head in range(heads)
        ]
        row = torch.stack(newest)[:, :, :, -1].mean((0, 2))  # [s, n]
        standing = torch.where(summed, total, torch.where(kind == BY_ROW, row, standing))
    stays = (place < low) | (place >= seen - recent)
    if given is not None:
        named = kind == BY_PLACE
        stays &= ~named
        wanted = given[torch.where(named, low, 0)]
        standing = standing.masked_fill(named & (place == wanted), -1.0)
    standing = standing.masked_fill(stays | (place < 0), torch.inf)
    lowest = standing == standing.amin(-1, keepdim=True)
    return torch.where(lowest, place, -1).argmax(-1, keepdim=True)


def _slots(table: Tensor, counts: Tensor, sequences: Tensor, order: Tensor, size: int) -> Tensor:
    """Slots [s, n] of the entries of sequences, -1 where there is none."""
    found = slots(table[sequences], order.expand(len(sequences), -1), size)
    return found.masked_fill(order >= counts[sequences][:, None], -1)


def _rows(weights: Tensor, slot: Tensor, tokens: int) -> Tensor:
    """Rows of the entries in slots [s, n], float32 [s, g, tokens, n]; 0 where there is none."""
    size = weights.shape[2]
    at = slot.clamp_min(0)
    rows = weights[at // size, :, at % size].movedim(-1, 1)  # [s, R, n]
    return rows.masked_fill((slot < 0)[:, None], 0.0).unflatten(1, (-1, tokens))


def _by_triton(
    places: Tensor,
    weights: Tensor | None,
    carried: Tensor | None,
    table: Tensor,
    counts: Tensor,
    sequences: Tensor,
    rules: Tensor,
    heads: int,
    tokens: int,
    seen: int,
    given: Tensor | None,
) -> Tensor:
    found = torch.empty(len(sequences), 1, dtype=torch.int64, device=places.device)
    rows = 0 if weights is None else weights.shape[1]
    launch(
        _lowest_kernel,
        (len(sequences),),
        places,
        weights,
        carried,
        table,
        counts,
        sequences,
        rules,
        given,
        found,
        heads,
        tokens,
        seen,
        rows,
        table.stride(0),
        SIZE=places.shape[1],
        BLOCK=512,
        num_warps=4,
    )
    return found


@jit(varying=("seen", "t_sequence"))
def _lowest_kernel(
    places,
    weights,
    carried,
    table,
    counts,
    sequences,
    rules,
    given,
    found,
    heads,
    tokens,
    seen,
    rows,
    t_sequence,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One sequence, BLOCK entries at a time."""
    listed = tl.program_id(0)
    sequence = tl.load(sequences + listed)
    kind = tl.load(rules + 3 * listed)
    low = tl.load(rules + 3 * listed + 1)
    high = seen - tl.load(rules + 3 * listed + 2)
    count = tl.load(counts + sequence)
    best = tl.full([BLOCK], float("inf"), tl.float32)
    newest = tl.full([BLOCK], -1, tl.int64)
    which = tl.full([BLOCK], 0, tl.int64)
    for start in range(0, count, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        inside = entry < count
        tile = tl.load(table + sequence * t_sequence + entry // SIZE, mask=inside, other=0)
        slot = tile.to(tl.int64) * SIZE + entry % SIZE
        place = tl.load(places + slot, mask=inside, other=-1)
        standing = place.to(tl.float32)
        if weights is not None:
            if (kind == 1) | (kind == 2):
                at = weights + tile.to(tl.int64) * rows * SIZE + entry % SIZE
                total = tl.zeros([BLOCK], tl.float32)
                for row in range(0, rows):
                    total += tl.load(at + row * SIZE, mask=inside, other=0.0)
                total = tl.where(kind == 2, total * tokens / rows, total)
                if carried is not None:
                    total += tl.load(carried + slot, mask=inside, other=0.0)
                    tl.store(carried + slot, total, mask=inside)
                standing = total
            if kind == 3:
                total = tl.zeros([BLOCK], tl.float32)
                for head in range(0, heads):
                    other = table + (sequence // heads * heads + head) * t_sequence
                    tile = tl.load(other + entry // SIZE, mask=inside, other=0)
                    at = weights + tile.to(tl.int64) * rows * SIZE + entry % SIZE
                    for row in range(tokens - 1, rows, tokens):
                        total += tl.load(at + row * SIZE, mask=inside, other=0.0)
                standing = total * tokens / (heads * rows)
        stays = (place < low) | (place >= high)
        if given is not None:  # noqa: SIM102, known when this is compiled
            if kind == 4:
                standing = tl.where(place == tl.load(given + low), -1.0, standing)
                stays = place < 0
        standing = tl.where(stays, float("inf"), standing)
        better = (standing < best) | ((standing == best) & (place > newest))
        best = tl.where(better, standing, best)
        newest = tl.where(better, place, newest)
        which = tl.where(better, entry.to(tl.int64), which)
    ties = best == tl.min(best, 0)
    last = tl.max(tl.where(ties, newest, -1), 0)
    order = tl.max(tl.where(ties & (newest == last), which, -1), 0)
    tl.store(found + listed, order)
