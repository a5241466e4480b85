"""Attention layers to measure on: their sizes, and random tensors of these sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import methods

LENGTHS = (1024, 4096, 32768, 131072)
SHORTEST = 512  # a tenth of it is more than the window
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SHARPNESS = 1.5  # standard deviation of the logits


@dataclass(frozen=True)
class Shape:
    """One attention layer over a prompt of `length` tokens, batch 1.

    hidden: rows of W_O. window: last queries that watch. itemsize: bytes an element of keys,
    values, queries and W_O. ratio: evicted fraction of the prompt, where something depends on it.
    scale: of ReST-KV's adaptive window, in tokens.
    """

    model: str
    heads: int
    kv_heads: int
    dim: int
    hidden: int
    length: int
    window: int = 32
    itemsize: int = 2
    ratio: float = 0.9
    scale: float = 2000.0

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.heads // self.kv_heads

    @property
    def budget(self) -> int:
        """Tokens kept of the prompt."""
        return methods.budget(self.length, self.ratio)


MODELS = {
    "qwen2.5-vl-7b": Shape("qwen2.5-vl-7b", 28, 4, 128, 3584, 0),
    "mistral-7b": Shape("mistral-7b", 32, 8, 128, 4096, 0),
}
SMALL = (  # what a machine without a GPU checks: more tokens than a tile, odd in all sizes
    Shape("small-g7", 7, 1, 32, 56, 150, 16, itemsize=4, ratio=0.5, scale=3.0),
    Shape("small-g4", 8, 2, 40, 41, 261, 16, itemsize=4, ratio=0.5, scale=5.0),
)


def shapes(models: list[str], lengths: list[int], itemsize: int) -> list[Shape]:
    """Every model at every length, shortest first."""
    return [
        replace(MODELS[model], length=length, itemsize=itemsize)
        for length in sorted(lengths)
        for model in models
    ]


@dataclass(frozen=True, eq=False)
class Layer:
    """keys, values [1, Hkv, L, d], queries [1, H, L, d], W_O [C, H * d]."""

    keys: Tensor
    values: Tensor
    queries: Tensor
    weight: Tensor
    scaling: float
    memo: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """compute() at the first call with this key: inputs that several runs share."""
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.keys.shape[2]

    def last(self, rows: int) -> Tensor:
        """The last `rows` queries, [1, H, rows, d]."""
        return self.queries[:, :, self.length - min(rows, self.length) :]

    def view(self, rows: int) -> methods.LayerView:
        """What an eviction method is shown, with the last `rows` queries."""
        return methods.LayerView(self.keys, self.values, self.last(rows), self.scaling, self.weight)

    def part(self, kv_head: int, dtype: torch.dtype) -> Layer:
        """One KV head with its query heads, and their columns of W_O, in another dtype."""
        group = self.queries.shape[1] // self.keys.shape[1]
        own = slice(kv_head * group, (kv_head + 1) * group)
        columns = self.weight.unflatten(1, (self.queries.shape[1], -1))[:, own].flatten(1)
        return Layer(
            self.keys[:, kv_head : kv_head + 1].to(dtype),
            self.values[:, kv_head : kv_head + 1].to(dtype),
            self.queries[:, own].to(dtype),
            columns.to(dtype),
            self.scaling,
        )


def draw(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Layer:
    """Normal numbers. The newer half of the window prefers later keys than all queries before it,
    so that an adaptive window has something to adapt to.
    """
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        if generator is None:
            return torch.empty(*sizes, dtype=dtype, device=device)
        drawn = torch.randn(*sizes, generator=generator, dtype=torch.float32, device=device)
        return drawn.mul_(scale).to(dtype)

    dim, length = shape.dim, shape.length
    keys = normal(1, shape.kv_heads, length, dim)
    values = normal(1, shape.kv_heads, length, dim)
    queries = normal(1, shape.heads, length, dim, scale=_SHARPNESS)
    # One coordinate says where a key is, and which end a query prefers.
    keys[..., 0] = torch.linspace(-0.5, 0.5, length, device=device)
    queries[..., 0] = -(dim**0.5)
    queries[:, :, length - min(length, shape.window) // 2 :, 0] = dim**0.5
    weight = normal(shape.hidden, shape.heads * dim, scale=shape.hidden**-0.5)
    return Layer(keys, values, queries, weight, dim**-0.5)
