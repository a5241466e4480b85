"""Where the largest entries of rows lie on average. Must not know what the rows are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .launch import by_triton, capability, jit, launch, tl
from .upload import upload

_TWIN_BYTES = 128 * 2**20
_ENTRY_BYTES = 24  # a copy of the row, its sorted values, their positions and running sums


def mean_top_positions(attention: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean position of the `count` largest entries of each row; float64 [counts, B, H, W].

    attention [B, H, W, L] is not negative. Ties go to the lower position; the means are exact but
    for one division. The kernel finds the smallest of the largest entries digit by digit, from
    histograms of the bits, and sorts nothing. ValueError for a count outside 1..L.
    """
    length = attention.shape[-1]
    if not all(1 <= count <= length for count in counts):
        raise ValueError(f"counts={list(counts)} do not fit rows of {length}; give 1 to {length}.")
    if by_triton(attention[..., None]):
        return _by_triton(attention, counts)
    *shape, _ = attention.shape
    every = torch.arange(attention[..., 0].numel(), device=attention.device)
    last = torch.tensor(counts, device=attention.device) - 1
    sums = []
    for some in every.split(max(1, _TWIN_BYTES // (_ENTRY_BYTES * length))):
        rows = attention[torch.unravel_index(some, shape)]
        # Stable, because keys a row cannot see tie at zero and a small count may not avoid them.
        order = rows.sort(dim=-1, descending=True, stable=True).indices[:, : max(counts)]
        sums.append(order.cumsum(-1)[:, last])
    means = torch.cat(sums).double() / (last + 1)
    return means.view(*shape, len(counts)).movedim(-1, 0)


def _config(capability: int) -> dict[str, int]:
    """Launch parameters: tiles that few registers hold, so that two programs share a processor."""
    return {"BLOCK": 4096, "num_warps": 16}


def _by_triton(attention: Tensor, counts: Sequence[int]) -> Tensor:
    batch, heads, rows, length = attention.shape
    means = torch.empty(
        batch, heads, rows, len(counts), dtype=torch.float64, device=attention.device
    )
    launch(
        _mean_kernel,
        (means.numel(),),
        attention,
        upload(counts, attention.device),
        means,
        length,
        heads,
        rows,
        len(counts),
        *attention.stride(),
        **_config(capability(attention.device)),
    )
    return means.movedim(-1, 0)


@jit
def _mean_kernel(
    attention,
    counts,
    means,
    length,
    heads,
    rows,
    plans,
    a_batch,
    a_head,
    a_row,
    a_key,
    BLOCK: tl.constexpr,
):
    """One row and count. The counts of a row run side by side and find it in the cache."""
    program = tl.program_id(0)
    count = tl.load(counts + program % plans)
    at = program // plans
    row = at % rows
    head = at // rows % heads
    batch = at // rows // heads
    line = attention + batch.to(tl.int64) * a_batch + head.to(tl.int64) * a_head
    line += row.to(tl.int64) * a_row
    lane = tl.arange(0, BLOCK)
    near = lane.to(tl.int64) * a_key
    digits = tl.arange(0, 256)
    # The bits of numbers that are not negative order like the numbers; -1 is below all of them.
    smallest = 0  # leading digits of the smallest entry that counts
    left = count  # of the entries with these digits, as many count, largest first
    for digit in range(4):
        seen = tl.zeros([256], tl.int32)
        tile = line
        for start in range(0, length, BLOCK):
            value = tl.load(tile + near, mask=lane < length - start, other=-1.0)
            tile += BLOCK * a_key
            leading = value.to(tl.float32).to(tl.int32, bitcast=True) >> (24 - 8 * digit)
            alike = (leading >> 8) == smallest
            seen += tl.histogram(leading & 255, 256, mask=alike)
        reaching = tl.cumsum(seen, 0, reverse=True) >= left
        found = tl.sum(reaching.to(tl.int32), 0) - 1
        left -= tl.sum(tl.where(digits > found, seen, 0), 0)
        smallest = smallest * 256 + found
    # What is larger counts, and of the equal entries the first `left`.
    equals = 0
    total = tl.zeros([], tl.int64)
    tile = line
    for start in range(0, length, BLOCK):
        value = tl.load(tile + near, mask=lane < length - start, other=-1.0)
        tile += BLOCK * a_key
        bits = value.to(tl.float32).to(tl.int32, bitcast=True)
        equal = (bits == smallest).to(tl.int32)
        chosen = (equal > 0) & (equals + tl.cumsum(equal, 0) <= left)
        equals += tl.sum(equal, 0)
        chosen = chosen | (bits > smallest)
        total += tl.sum(tl.where(chosen, start + lane, 0).to(tl.int64), 0)
    tl.store(means + program, total.to(tl.float64) / count.to(tl.float64))
