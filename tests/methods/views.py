"""Random layers for the tests of the methods."""

from __future__ import annotations

from dataclasses import replace

import torch

import methods


class HalfTurns:
    """Rotary positions 0 to length - 1: element i of a head turns with element i + dim // 2.

    The last element of an odd dim stays.
    """

    def __init__(self, length: int, dim: int, base: float = 100.0) -> None:
        self.length, self.half = length, dim // 2
        self.speeds = base ** (-torch.arange(self.half) / max(self.half, 1))

    def rotate(self, queries: torch.Tensor, direction: int = 1) -> torch.Tensor:
        first = self.length - queries.shape[2]
        angles = torch.arange(first, self.length)[:, None] * self.speeds
        return self._turn(queries.float(), angles.cos(), direction * angles.sin())

    def undo(self, queries: torch.Tensor) -> torch.Tensor:
        return self.rotate(queries, -1)

    def ahead(self, vectors: torch.Tensor, count: int) -> torch.Tensor:
        angles = (self.length + torch.arange(count))[:, None] * self.speeds
        return self._turn(vectors.float(), angles.cos().mean(0), angles.sin().mean(0))

    def _turn(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        cos, sin = cos.to(x.device), sin.to(x.device)
        one, two, rest = x.split([self.half, self.half, x.shape[-1] - 2 * self.half], dim=-1)
        return torch.cat([one * cos - two * sin, two * cos + one * sin, rest], dim=-1)


def random_view(
    length: int = 41,
    kv_heads: int = 2,
    group: int = 2,
    dim: int = 8,
    batch: int = 1,
    seed: int = 0,
    hidden: int = 24,
    sharpness: float = 1.0,
    dtype: torch.dtype = torch.float32,
    layer: int = 1,
    num_layers: int = 4,
    mask: torch.Tensor | None = None,
) -> methods.LayerView:
    """Normal keys, values and all L queries; a larger sharpness peaks the attention."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    heads = kv_heads * group
    keys, values = draw(batch, kv_heads, length, dim), draw(batch, kv_heads, length, dim)
    queries = draw(batch, heads, length, dim) * sharpness
    weight = draw(hidden, heads * dim)
    tensors = (tensor.to(dtype) for tensor in (keys, values, queries))
    place = {"layer": layer, "num_layers": num_layers, "mask": mask}
    turns = HalfTurns(length, dim)
    context = length - max(1, length // 4)  # the rest is a question
    first = min(2, max(context - 1, 0))
    most = torch.rand(batch, heads, max(context, 1) - first, generator=generator)
    about = {"rotation": turns, "context": context, "recited": methods.Recited(first, most)}
    return methods.LayerView(*tensors, dim**-0.5, weight.to(dtype), **place, **about)


def batched(one: methods.LayerView, two: methods.LayerView) -> methods.LayerView:
    """Two views alike in shape as one of both prompts."""
    names = ("keys", "values", "queries")
    joined = {name: torch.cat([getattr(one, name), getattr(two, name)]) for name in names}
    most = torch.cat([one.recited.attention, two.recited.attention])
    return replace(one, **joined, recited=methods.Recited(one.recited.first, most))
