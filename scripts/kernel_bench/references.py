"""Errors against the published formulas in float64, with bounded memory.

On the first and the last KV head; on the first one, in float32, where all queries of a long prompt
look.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import published
from .measure import error
from .shapes import Layer, Shape

_TOKENS = 4096  # projected at once
_ELEMENTS = 2**28  # of the attention rows held at once
_EXACT = 8192  # longest prompt of which all rows are computed in float64


def worst(layer: Layer, got: Tensor, wanted: Callable[[Layer, int], Tensor]) -> float:
    """Largest error of got [heads, ...], query or KV heads. wanted: (one KV head in float64, its
    number) -> what its heads should have, [n, ...]."""
    kv_heads = layer.keys.shape[1]
    own = got.unflatten(0, (kv_heads, -1))
    heads = {0, kv_heads - 1}
    return max(error(own[each], wanted(layer.part(each, torch.float64), each)) for each in heads)


def all_rows(layer: Layer, got: Tensor, wanted: Callable[[Layer, int], Tensor]) -> float:
    """The same where all queries look. wanted: (part, queries at once) -> [1, n, L]."""
    group = layer.queries.shape[1] // layer.keys.shape[1]
    block = max(1, _ELEMENTS // (group * layer.length))
    if layer.length <= _EXACT:
        return worst(layer, got, lambda part, _: wanted(part, block)[0])
    own = got.unflatten(0, (layer.keys.shape[1], -1))[0]
    return error(own, wanted(layer.part(0, torch.float32), block)[0])


def restkv(shape: Shape, layer: Layer, scores: Tensor, scale: float) -> float:
    """Of ReST-KV's scores [1, Hkv, >= L - W] before the window."""

    def wanted(part: Layer, _head: int) -> Tensor:
        return published.restkv(part, shape.window, shape.budget, scale, block=_TOKENS)[0]

    return worst(layer, scores[0, :, : shape.length - shape.window], wanted)


def snapkv(shape: Shape, layer: Layer, scores: Tensor) -> float:
    """Of SnapKV's scores [1, Hkv, >= L - W] before the window."""
    past = shape.length - shape.window
    return worst(
        layer, scores[0, :, :past], lambda part, _: published.snapkv(part, shape.window)[0]
    )


def tova(shape: Shape, layer: Layer, scores: Tensor) -> float:
    """Of TOVA's scores, [1, Hkv, L] all alike or [1, L]."""
    heads = range(shape.kv_heads)
    parts = [published.tova(layer.part(each, torch.float64)) for each in heads]
    return error(scores.reshape(1, -1, shape.length)[:, 0], torch.stack(parts).mean(0))


def columns(shape: Shape, layer: Layer, result: tuple[Tensor, Tensor]) -> float:
    """Of the averaged rows [1, H, L] and outputs [1, H, d] of a window."""

    def wanted(part: Layer, index: int) -> Tensor:
        return published.average(part, shape.window)[index][0]

    a, outputs = (each[0] for each in result)
    return max(
        worst(layer, a, lambda part, _: wanted(part, 0)),
        worst(layer, outputs, lambda part, _: wanted(part, 1)),
    )


def importance(layer: Layer, a: Tensor, outputs: Tensor, scores: Tensor) -> float:
    """Of the change by each token [1, Hkv, L] for these a [1, H, L] and outputs [1, H, d]."""
    kv_heads = layer.keys.shape[1]
    a, outputs = (each.double().unflatten(1, (kv_heads, -1)) for each in (a, outputs))

    def wanted(part: Layer, head: int) -> Tensor:
        return published.importance(part, a[:, head], outputs[:, head], _TOKENS)[0]

    return worst(layer, scores[0], wanted)


def window_lse(shape: Shape, layer: Layer, result: Tensor) -> float:
    """Of a log-sum-exp [1, H, W]: the relative error of the sum."""

    def wanted(part: Layer, _head: int) -> Tensor:
        return published.window_lse(part, shape.window)[0].exp()

    return worst(layer, result[0].exp(), wanted)


def row_lse(_shape: Shape, layer: Layer, result: Tensor) -> float:
    """Of a log-sum-exp [1, H, L]: the relative error of the sum."""
    return all_rows(layer, result[0].exp(), lambda *some: published.row_lse(*some).exp())
