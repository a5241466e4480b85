"""Random layers for the tests of the methods."""

from __future__ import annotations

import torch

import methods


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
    return methods.LayerView(*tensors, dim**-0.5, weight.to(dtype), **place)
