"""Kernels of ragged_attention: a chunk of a sequence, the chunks together, the weights.

Must not know how their work is divided.
"""

from __future__ import annotations

from .blocks import load_columns, load_rows
from .launch import jit, tl


@jit(varying=("splits", "table_row"))
def attention_kernel(
    queries,
    keys,
    values,
    places,
    table,
    counts,
    first,
    cosines,
    sines,
    start,
    ranks,
    turned,
    ranks_tile,
    parts,
    lse,
    weights,
    scaling,
    chunk,
    splits,
    rows,
    row_blocks,
    tokens,
    dim,
    value_dim,
    q_sequence,
    q_row,
    q_dim,
    k_tile,
    k_slot,
    k_dim,
    v_tile,
    v_slot,
    v_dim,
    places_tile,
    table_row,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    VALUE_DIMS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of a sequence for a block of its rows, entries along axis 0.

    Writes its softmax output to parts [S, R, splits, dv] and the log2-sum of its weights to lse [S,
    R, splits]; leaves the logits, base 2, in weights [T, R, tile] if there are any. HALF: pairs of
    key elements to turn, padded, 0 = none; REST: the other elements.
    """
    sequence = (tl.program_id(0) // row_blocks).to(tl.int64)
    begin = tl.program_id(1) * chunk
    count = tl.load(counts + sequence)
    if begin >= count:
        return
    row = tl.program_id(0) % row_blocks * ROWS + tl.arange(0, ROWS)
    last = tl.load(first) + row % tokens
    q = queries + sequence * q_sequence
    if HALF:
        turn = tl.load(start + sequence)
        reach = tl.where(turn >= 0, count, 0)  # entries that are turned
        step = 2 if INTERLEAVED else 1
        second = 1 if INTERLEAVED else turned // 2
        q_step, k_step = step * q_dim, step * k_dim
        pairs = turned // 2
        q1 = load_columns(q, row, row < rows, q_row, pairs, q_step, HALF, UPCAST)
        q2 = q + second * q_dim
        q2 = load_columns(q2, row, row < rows, q_row, pairs, q_step, HALF, UPCAST)
        if REST:
            q3 = q + turned * q_dim
            q3 = load_columns(q3, row, row < rows, q_row, dim - turned, q_dim, REST, UPCAST)
    else:
        q = load_columns(q, row, row < rows, q_row, dim, q_dim, DIMS, UPCAST)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    output = tl.zeros((VALUE_DIMS, ROWS), tl.float32)
    end = tl.minimum(begin + chunk, count)
    table += sequence * table_row
    ahead = _tiles(table, begin, count, TILE, BLOCK)
    for offset in tl.range(begin, end, BLOCK):
        tile = ahead
        ahead = _tiles(table, offset + BLOCK, end, TILE, BLOCK)
        entry = offset + tl.arange(0, BLOCK)
        there = entry < count
        slot = entry % TILE
        place = tl.load(places + tile * places_tile + slot, mask=there, other=-1)
        at = tile * k_tile + slot * k_slot
        if HALF:
            rank = tl.load(ranks + tile * ranks_tile + slot, mask=there, other=0) + turn
            turns = entry < reach
            cos = load_rows(cosines, rank, turns, turned, pairs, step, HALF, False)
            sin = load_rows(sines, rank, turns, turned, pairs, step, HALF, False)
            cos = tl.where(turn >= 0, cos, 1.0)
            k1 = load_rows(keys, at, there, 1, pairs, k_step, HALF, UPCAST)
            k2 = load_rows(keys + second * k_dim, at, there, 1, pairs, k_step, HALF, UPCAST)
            logits = tl.dot((k1 * cos - k2 * sin).to(k1.dtype), q1, input_precision="ieee")
            other = (k2 * cos + k1 * sin).to(k1.dtype)
            logits = tl.dot(other, q2, logits, input_precision="ieee")
            if REST:
                k3 = keys + turned * k_dim
                k3 = load_rows(k3, at, there, 1, dim - turned, k_dim, REST, UPCAST)
                logits = tl.dot(k3, q3, logits, input_precision="ieee")
        else:
            k = load_rows(keys, at, there, 1, dim, k_dim, DIMS, UPCAST)
            logits = tl.dot(k, q, input_precision="ieee")
        visible = (place >= 0)[:, None] & (place[:, None] <= last[None])
        logits = tl.where(visible, logits * scaling, float("-inf"))
        if weights is not None:
            out = weights + (tile * rows * TILE + slot)[:, None] + (row * TILE)[None]
            tl.store(out, logits, mask=there[:, None] & (row < rows)[None])
        higher = tl.maximum(top, tl.max(logits, 0))
        above = tl.where(higher == float("-inf"), 0.0, higher)
        old = tl.exp2(top - above)
        weight = tl.exp2(logits - above[None])
        total = total * old + tl.sum(weight, 0)
        top = higher
        at = tile * v_tile + slot * v_slot
        v = load_rows(values, at, there, 1, value_dim, v_dim, VALUE_DIMS, UPCAST)
        output = tl.dot(tl.trans(v), weight.to(v.dtype), output * old[None], input_precision="ieee")
    output = output / tl.where(total == 0.0, 1.0, total)[None]
    out = (sequence * rows + row) * splits + tl.program_id(1)
    tl.store(lse + out, top + tl.log2(tl.where(total == 0.0, 1.0, total)), mask=row < rows)
    element = tl.arange(0, VALUE_DIMS)
    inside = (element < value_dim)[:, None] & (row < rows)[None]
    tl.store(parts + out[None] * value_dim + element[:, None], output, mask=inside)


@jit
def _tiles(table, offset, count, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """The tile of each of a block of entries, or the one of all of them; 0 behind the last.

    It is read a block ahead, or keys and values could not be: their addresses would wait for it.
    """
    entry = offset
    if TILE % BLOCK != 0:
        entry += tl.arange(0, BLOCK)
    return tl.load(table + entry // TILE, mask=entry < count, other=0).to(tl.int64)


@jit(varying=("splits",))
def combine_kernel(
    parts,
    lse,
    counts,
    outputs,
    final,
    chunk,
    splits,
    rows,
    dim,
    DIMS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One row over the chunks of its sequence: outputs [S, R, dv] and final lse [S, R]."""
    row = tl.program_id(0).to(tl.int64)
    used = tl.cdiv(tl.load(counts + row // rows), chunk)
    element = tl.arange(0, DIMS)
    top = float("-inf")
    total = 0.0
    output = tl.zeros((DIMS,), tl.float32)
    for offset in range(0, used, PARTS):
        part = offset + tl.arange(0, PARTS)
        one = tl.load(lse + row * splits + part, mask=part < used, other=float("-inf"))
        higher = tl.maximum(top, tl.max(one, 0))
        above = tl.where(higher == float("-inf"), 0.0, higher)
        old = tl.exp2(top - above)
        share = tl.exp2(one - above)
        total = total * old + tl.sum(share, 0)
        top = higher
        at = parts + (row * splits + part)[:, None] * dim + element[None]
        block = tl.load(at, mask=(part < used)[:, None] & (element < dim)[None], other=0.0)
        output = output * old + tl.sum(block * share[:, None], 0)
    tl.store(outputs + row * dim + element, output / total, mask=element < dim)
    tl.store(final + row, top + tl.log2(total))


@jit(varying=("number",))
def weights_kernel(
    weights,
    lse,
    places,
    owner,
    number,
    rows,
    places_tile,
    TILE: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Logits, base 2, of some pairs of a tile and a row to weights, in place; 0 for no entry."""
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    tile = pair // rows
    inside = pair < number
    slot = tl.arange(0, TILE)
    sequence = tl.load(owner + tile, mask=inside, other=0)
    total = tl.load(lse + sequence * rows + pair % rows, mask=inside, other=0.0)
    inside = inside[:, None] & (slot >= 0)[None]
    place = tl.load(places + tile[:, None] * places_tile + slot[None], mask=inside, other=-1)
    at = weights + pair[:, None] * TILE + slot[None]
    # Slots without an entry hold anything: nobody has written there.
    logits = tl.load(at, mask=place >= 0, other=float("-inf"))
    tl.store(at, tl.exp2(logits - total[:, None]), mask=inside)
