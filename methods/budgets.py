"""How many tokens are kept: of a prompt, by each layer and by each head.

Knows counts and scores; must not know methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

RULES = ("uniform", "pyramid", "adaptive")  # a layer by itself
GLOBAL, LAYERS = "global", "layers"  # all layers at once


def budget(length: int, ratio: float) -> int:
    """Tokens kept of `length` when the fraction `ratio` in [0, 1) is evicted: L - floor(ratio * L).

    The ratio is read as the decimal that was meant: 0.7 of 10 tokens is 7, not 6. At least one
    token stays. ValueError for a ratio outside [0, 1) or a length below 1.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise ValueError(
            f"ratio={ratio!r} is not a fraction of tokens to evict; give 0 <= ratio < 1."
        )
    if length < 1:
        raise ValueError(f"length={length} leaves nothing to keep; give at least one token.")
    evicted = math.floor(Fraction(ratio).limit_denominator(10**6) * length)
    return max(1, length - evicted)


def kept_count(length: int, budget: int) -> int:
    """min(budget, L). ValueError for a budget that is not a whole number >= 1."""
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"budget={budget!r} is not a whole number of tokens; give 1 or more.")
    return min(budget, length)


def protected_window(window: int, count: int) -> int:
    """Protected last tokens when `count` are kept: the window where it fits, else half of them."""
    return window if count > window else count // 2


def boundary(count: int, share: float) -> int:
    """Tokens protected at each end of the prompt: that share of the `count` that are kept.

    The share is read as the decimal that was meant and rounded down; at least one token is
    protected, and both ends together never exceed the count: of one token, neither is.
    """
    tokens = math.floor(Fraction(share).limit_denominator(10**6) * count)
    return min(max(1, tokens), count // 2)


@lru_cache(maxsize=1024)
def pyramid(
    count: int, room: int, num_layers: int, beta: int = 20, length: int | None = None
) -> tuple[int, ...]:
    """Tokens each layer keeps outside its protected ones, first layer first (arXiv 2406.02069).

    count: their mean over the layers; room: how many there are; length: with the protected ones,
    None where there are none. The last layer keeps count / beta (rounded down, at least 1), the
    first as much more than the mean as the last keeps less, those between lie on a line. A first
    layer that would need more than `room` takes all of it, and the last one the rest; as in the
    released code, a length below twice the count is shared evenly.

    The sum is count * num_layers exactly: fractions of the line are rounded by largest remainder.
    The released code rounds the step down instead and keeps more (4,560 for 4,096 on 32 layers).
    """
    if num_layers == 1 or (room if length is None else length) < 2 * count or count < 1:
        return (count,) * num_layers
    last = max(1, count // beta)
    first = min(2 * count - last, room)
    last = 2 * count - first
    step = Fraction(first - last, num_layers - 1)
    line = [first - layer * step for layer in range(num_layers)]
    counts = [math.floor(share) for share in line]
    rest = count * num_layers - sum(counts)
    by_fraction = sorted(range(num_layers), key=lambda layer: (counts[layer] - line[layer], layer))
    for layer in by_fraction[:rest]:
        counts[layer] += 1
    return tuple(counts)


def adaptive(scores: Tensor, count: int, floor: float = 0.2, normalize: bool = True) -> Tensor:
    """Tokens each head keeps of its candidates, int64 [B, H] (Ada-KV, arXiv 2407.11550).

    scores [B, H, N], each head's candidates in descending order, none negative. The top H * count
    of all heads together give each head a share; that share counts 1 - floor, an even one `floor`.
    normalize: as in the released code, weigh a head's scores by the part of their sum that its own
    top `count` hold. Equal scores of different heads are taken in turn, best rank first.

    The sum is H * count exactly, by largest remainder; the released code rounds each head by itself
    and drifts.
    """
    batch, heads = scores.shape[:2]
    if normalize:
        total = scores.sum(-1, keepdim=True)
        top = scores[..., :count].sum(-1, keepdim=True)
        scores = scores * torch.where(total > 0, top / total, 1.0)
    by_rank = scores.transpose(1, 2).reshape(batch, -1)  # [B, N * H]: ties go to the better rank
    chosen = by_rank.sort(dim=-1, descending=True, stable=True).indices[:, : heads * count] % heads
    pooled = torch.zeros(batch, heads, dtype=torch.float64, device=scores.device)
    pooled.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
    # Shares are multiples of floor's last digit: what float64 adds to them is far below 1e-9.
    share = pooled * (1 - floor) + count * floor
    whole = (share + 1e-9).floor()
    rest = heads * count - whole.sum(-1, keepdim=True)
    rank = (share - whole).sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    return (whole + (rank < rest)).long()


def pooled(scores: Tensor, count: int | Tensor) -> Tensor:
    """Tokens each head keeps if the best H * count of all heads stay, int64 [B, H].

    scores [B, H, N], each head's in descending order; count: int64 [B, 1] where items differ. Each
    head keeps its best one. Equal scores of different heads are taken in turn, best rank first.
    """
    batch, heads = scores.shape[:2]
    first = torch.zeros_like(scores, dtype=torch.bool)
    first[..., 0] = True
    by_rank = scores.masked_fill(first, torch.inf).transpose(1, 2).reshape(batch, -1)  # [B, N * H]
    order = by_rank.sort(dim=-1, descending=True, stable=True).indices
    best = torch.arange(order.shape[1], device=order.device) < heads * count
    counts = torch.zeros(batch, heads, dtype=torch.int64, device=scores.device)
    return counts.scatter_add_(1, order % heads, best.expand_as(order).long())


def preferred(wanted: Tensor, count: int, room: int) -> Tensor:
    """Tokens each layer keeps outside its protected ones, int64 [B, layers] (arXiv 2503.12491).

    wanted [B, layers]: how much each asks for, none negative; where nobody asks, all get as much.
    count: their mean over the layers, at most `room`, which is how many there are. Shares are
    rounded down; what does not fit into its layer, then what rounding left over, goes evenly to
    layers with room, of which the first take the remainder.

    The sum is count * layers exactly. The released code spreads once, cuts what then exceeds the
    room, and keeps less.
    """
    found = [_preferred(row, count, room) for row in wanted.double().tolist()]
    return torch.tensor(found, device=wanted.device)


def _preferred(wanted: list[float], count: int, room: int) -> list[int]:
    number, total = len(wanted), sum(wanted)
    shares = [each / total if total > 0 else 1 / number for each in wanted]
    asked = [math.floor(share * count * number + 1e-9) for share in shares]
    counts = [min(each, room) for each in asked]
    _spread(counts, sum(asked) - sum(counts), room)
    _spread(counts, count * number - sum(counts), room)
    return counts


def _spread(counts: list[int], rest: int, room: int) -> None:
    """Add `rest` to the counts that have room, one by one in turn, until all of it is given."""
    while rest > 0:
        free = [layer for layer, each in enumerate(counts) if each < room]
        turns = min(rest // len(free), *(room - counts[layer] for layer in free))
        for layer in free if turns else free[:rest]:
            counts[layer] += max(1, turns)
        rest -= turns * len(free) if turns else min(rest, len(free))


@lru_cache(maxsize=1024)
def weighted(
    shares: tuple[float, ...], count: int, room: int, beta: float = 1.5
) -> tuple[int, ...]:
    """Tokens each head of all layers keeps outside its protected ones (arXiv 2410.19258).

    shares: how important each head is, none negative, with a sum of 1. count: their mean over the
    heads, at most `room`, which is how many there are. Each head puts count / beta (rounded down,
    beta read as the decimal that was meant) into a pool that is shared out by importance, and keeps
    the rest of its own. What does not fit into its head goes to the others by importance again.

    The sum is count * heads exactly, by largest remainder; of equal ones, the first heads are
    given more.
    """
    pool = math.floor(count / Fraction(beta).limit_denominator(10**6))
    sizes = _filled(shares, count - pool, count * len(shares), room)
    counts = [min(room, math.floor(size + 1e-9)) for size in sizes]
    rest = count * len(shares) - sum(counts)
    free = [head for head, each in enumerate(counts) if each < room]
    free.sort(key=lambda head: (round(counts[head] - sizes[head], 9), head))
    for head in free[:rest]:
        counts[head] += 1
    return tuple(counts)


def _filled(shares: Sequence[float], least: int, total: int, room: int) -> list[float]:
    """`least` for each head, and the rest of the total by shares, of which none exceeds `room`."""
    sizes, open_heads = [float(room)] * len(shares), list(range(len(shares)))
    while open_heads:
        pool = total - room * (len(shares) - len(open_heads)) - least * len(open_heads)
        weight = math.fsum(shares[head] for head in open_heads)
        for head in open_heads:
            own = shares[head] / weight if weight > 0 else 1 / len(open_heads)
            sizes[head] = least + own * pool
        full = [head for head in open_heads if sizes[head] > room]
        for head in full:
            sizes[head] = float(room)
        open_heads = [head for head in open_heads if sizes[head] < room] if full else []
    return sizes
