"""The published formulas in plain eager torch, as a reader of the papers would write them.

ReST-KV is arXiv 2605.08840, SnapKV 2404.14469, TOVA 2401.06104, H2O 2306.14048. Keys and values are
expanded to all query heads, nothing is fused, and no tensor is avoided: this is what the kernels
are compared with. It must not use the package `methods`, whose results it checks.

Half precision stays half precision up to the softmax; float64 stays float64, which makes the same
lines the reference. `block` bounds the memory there: None, all at once, is the published form.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from .shapes import Layer

_LEAST = 1e-6  # of 1 - a, which half precision rounds to 0


def expand(entries: Tensor, heads: int) -> Tensor:
    """[B, Hkv, L, d] to [B, H, L, d]."""
    return entries.repeat_interleave(heads // entries.shape[1], dim=1)


def logits(queries: Tensor, keys: Tensor, scaling: float, first: int) -> Tensor:
    """scaling * queries keys^T, -inf in the future of a query; [B, H, R, L].

    queries [B, H, R, d], row i is query number first + i; keys [B, H, L, d], expanded.
    """
    every = torch.matmul(queries, keys.transpose(2, 3)) * scaling
    position = torch.arange(keys.shape[2], device=keys.device)
    future = position > position[first : first + every.shape[2], None]
    return every.masked_fill(future, -torch.inf)


def softmax(rows: Tensor) -> Tensor:
    """Attention rows of logits, float32 or float64."""
    return torch.softmax(rows, -1, dtype=_wide(rows))


def window_logits(layer: Layer, window: int) -> Tensor:
    """Logits of the last `window` queries, [B, H, W, L]."""
    queries = layer.last(window)
    keys = expand(layer.keys, queries.shape[1])
    return logits(queries, keys, layer.scaling, layer.length - queries.shape[2])


def window_rows(layer: Layer, window: int) -> Tensor:
    """Attention rows of the last `window` queries, [B, H, W, L]."""
    return softmax(window_logits(layer, window))


def window_lse(layer: Layer, window: int) -> Tensor:
    """Log-sum-exp of the last `window` queries' logits, [B, H, W]."""
    rows = window_logits(layer, window)
    return rows.to(_wide(rows)).logsumexp(-1)


def moving_average(rows: Tensor, alpha: float) -> Tensor:
    """Exponential moving average over the rows of [B, H, W, L], oldest first: [B, H, L]."""
    state = rows[:, :, 0]
    for row in range(1, rows.shape[2]):
        state = alpha * rows[:, :, row] + (1 - alpha) * state
    return state


def average(layer: Layer, window: int, alpha: float = 0.3) -> tuple[Tensor, Tensor]:
    """Moving average a [B, H, L] of the window's rows, and what its part before the window takes
    from the values, not renormalised: outputs [B, H, d] in the dtype of the values."""
    rows = window_rows(layer, window)
    a = moving_average(rows, alpha)
    return a, _outputs(a, expand(layer.values, a.shape[1]), layer.length - rows.shape[2])


def change(a: Tensor, outputs: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """a / (1 - a) * || W_O (o - v_j) || of every head and token, [B, H, L].

    a [B, H, L], outputs o [B, H, d], values [B, H, L, d], W_O [C, H * d]. Holds two [B, H, L, C].
    """
    own = weight.unflatten(1, (values.shape[1], -1)).permute(1, 2, 0)  # [H, d, C]
    projected = torch.matmul(values, own)  # [B, H, L, C]
    moved = torch.matmul(outputs[:, :, None], own) - projected
    distance = torch.linalg.vector_norm(moved, dim=-1, dtype=a.dtype)
    return a / (1 - a).clamp_min(_LEAST) * distance


def top_positions(rows: Tensor, count: int, stable: bool = False) -> Tensor:
    """Mean position of the `count` most attended keys of each row; sorts every row in full.

    stable: of equal ones, those at lower positions.
    """
    order = rows.argsort(dim=-1, descending=True, stable=stable)
    return order[..., :count].double().mean(-1)


def edge_pool(scores: Tensor, kernel: int) -> Tensor:
    """Average over `kernel` neighbours of scores [B, Hkv, P]; end values are repeated."""
    return avg_pool1d(pad(scores, (kernel // 2, kernel // 2), mode="replicate"), kernel, 1)


def drift(rows: Tensor, count: int) -> Tensor:
    """Mean position of the `count` most attended keys in the older half of the rows [B, H, W, L],
    less that in the newer half; [B, H].
    """
    half = rows.shape[2] // 2
    front, rear = (
        top_positions(part, count).mean(-1) for part in (rows[:, :, :half], rows[:, :, half:])
    )
    return front - rear


def adaptive_pool(scores: Tensor, moved: Tensor, scale: float, kernel: int) -> Tensor:
    """Average of each head's scores [B, Hkv, P] over a window of its own width and shift.

    With s = floor(|moved| / scale): max(kernel, 2 s + 1) tokens, s towards the sign of moved
    [B, Hkv]; end values are repeated.
    """
    # On meta tensors, where costs are counted, nothing has moved.
    by = [0.0] * moved.numel() if moved.is_meta else moved.flatten().tolist()
    pooled = []
    for row, distance in zip(scores.flatten(0, 1), by, strict=True):
        steps = int(abs(distance) // scale)
        width = max(kernel, 2 * steps + 1)
        reach = width // 2 + steps
        padded = pad(row[None, None], (reach, reach), mode="replicate")
        start = 2 * steps if distance > 0 else 0
        pooled.append(avg_pool1d(padded, width, 1)[0, 0, start : start + len(row)])
    return torch.stack(pooled).view_as(scores)


def restkv(
    layer: Layer,
    window: int,
    count: int,
    scale: float = 2000.0,
    kernel: int = 5,
    alpha: float = 0.3,
    block: int | None = None,
) -> Tensor:
    """ReST-KV's score of the tokens before the window when `count` of all are kept, [B, Hkv, P].

    block: tokens projected at once.
    """
    rows = window_rows(layer, window)
    past = layer.length - rows.shape[2]
    a = moving_average(rows, alpha)
    outputs = _outputs(a, expand(layer.values, a.shape[1]), past)
    moved = _group_mean(drift(rows, count - rows.shape[2]), layer)
    return adaptive_pool(importance(layer, a, outputs, block)[..., :past], moved, scale, kernel)


def importance(layer: Layer, a: Tensor, outputs: Tensor, block: int | None = None) -> Tensor:
    """Change of the output by each token, mean over the query heads of a KV head, [B, Hkv, L].

    a [B, H, L], outputs [B, H, d]; block: tokens projected at once.
    """
    values, size = expand(layer.values, a.shape[1]), block or layer.length
    pieces = [
        change(each, outputs, own, layer.weight)
        for each, own in zip(a.split(size, 2), values.split(size, 2), strict=True)
    ]
    return _group_mean(pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2), layer)


def snapkv(layer: Layer, window: int, kernel: int = 5) -> Tensor:
    """SnapKV's score of the tokens before the window, zeros beyond the ends; [B, Hkv, P]."""
    rows = window_rows(layer, window)
    sums = _group_mean(rows.sum(2)[..., : layer.length - rows.shape[2]], layer)
    return avg_pool1d(sums, kernel, 1, kernel // 2)


def tova(layer: Layer) -> Tensor:
    """Mean over all query heads of the last attention row, [B, L]."""
    return window_rows(layer, 1)[:, :, 0].mean(1)


def column_sums(layer: Layer, block: int | None = None) -> Tensor:
    """Attention that each key collects from all queries, [B, H, L]; `block` rows at once."""
    blocks = _row_blocks(layer, block)
    total = softmax(next(blocks)).sum(2)
    for rows in blocks:
        total += softmax(rows).sum(2)
    return total


def row_lse(layer: Layer, block: int | None = None) -> Tensor:
    """Log-sum-exp of the logits of all queries, [B, H, L]; `block` rows at once."""
    return torch.cat([rows.to(_wide(rows)).logsumexp(-1) for rows in _row_blocks(layer, block)], 2)


def gather(entries: Tensor, places: Tensor) -> Tensor:
    """Entries [B, Hkv, L, d] of the places [Hkv, n], one head after another: [Hkv, n, d]."""
    picked = [entries[0, head].index_select(0, own) for head, own in enumerate(places)]
    return torch.stack(picked)


def h2o(layer: Layer, block: int | None = None) -> Tensor:
    """H2O's score of all tokens, [B, Hkv, L]; holds [B, H, L, L]."""
    return _group_mean(column_sums(layer, block), layer)


def _row_blocks(layer: Layer, block: int | None) -> Iterator[Tensor]:
    """Logits of `block` queries after another over all keys, [B, H, block, L]."""
    keys, size = expand(layer.keys, layer.queries.shape[1]), block or layer.length
    for start in range(0, layer.length, size):
        part = layer.queries[:, :, start : start + size]
        yield logits(part, keys, layer.scaling, start)


def _outputs(a: Tensor, values: Tensor, past: int) -> Tensor:
    """What the first `past` of a [B, H, L] take from the values [B, H, L, d]: [B, H, d]."""
    some = a[:, :, None, :past].to(values.dtype)
    return torch.matmul(some, values[:, :, :past])[:, :, 0]


def _group_mean(per_head: Tensor, layer: Layer) -> Tensor:
    """Mean over the query heads of each KV head: [B, H, ...] to [B, Hkv, ...]."""
    return per_head.unflatten(1, (layer.keys.shape[1], -1)).mean(2)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
