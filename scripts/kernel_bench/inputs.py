"""Tensors that parts of a score are measured on, shared by their runs, and the errors of parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import published, references
from .shapes import Layer, Shape


def average(shape: Shape, layer: Layer) -> tuple[Tensor, Tensor]:
    """Averaged rows and outputs, float32, that the reconstruction is measured on."""

    def compute() -> tuple[Tensor, Tensor]:
        a, outputs = published.average(layer, shape.window)
        return a, outputs.float()

    return layer.once("average", compute)


def scores(shape: Shape, layer: Layer) -> Tensor:
    """Some scores float32 [1, Hkv, L]."""
    return layer.once("scores", lambda: layer.values[..., 0].float().abs())


def pooled_error(shape: Shape, layer: Layer, got: Tensor) -> float:
    """Of pooled `scores`, [..., Hkv, >= L - W]."""
    past = shape.length - shape.window
    wanted = published.edge_pool(scores(shape, layer)[..., :past].double(), 5)
    return references.error(got.reshape(1, shape.kv_heads, -1)[..., :past], wanted)


def rows(shape: Shape, layer: Layer) -> Tensor:
    """Attention rows of the window, float32 [1, H, W, L]."""
    return layer.once("rows", lambda: published.window_rows(layer, shape.window))


def positions_error(shape: Shape, layer: Layer, got: Tensor) -> float:
    """Of the mean positions of the budget's top keys of `rows`, [..., H, W]."""
    wanted = published.top_positions(rows(shape, layer), shape.budget, stable=True)
    return references.error(got.reshape(wanted.shape), wanted)


def places(shape: Shape, layer: Layer) -> Tensor:
    """Kept places, a random ascending choice for each head, int64 [Hkv, n]."""

    def compute() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        heads = range(shape.kv_heads)
        order = torch.stack([torch.randperm(shape.length, generator=generator) for _ in heads])
        return order[:, : shape.budget].sort(-1).values.to(layer.keys.device)

    return layer.once("places", compute)


def gather_error(shape: Shape, layer: Layer, got: Any) -> float:
    """Of keys and values gathered from `places`, one head after another, padded or not."""
    head = torch.arange(shape.kv_heads, device=layer.keys.device)[:, None]
    kept, worst = places(shape, layer), 0.0
    for taken, entries in zip(got, (layer.keys, layer.values), strict=True):
        taken = taken.view(shape.kv_heads, -1, shape.dim)[:, : shape.budget]
        worst = max(worst, references.error(taken, entries[0, head, kept]))
    return worst


def importance_error(shape: Shape, layer: Layer, got: Tensor) -> float:
    """Of the change by each token for the rows and outputs of `average`, [1, Hkv, L]."""
    return references.importance(layer, *average(shape, layer), got)
