"""Random layers for the kernels, and what is compared in float64."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# (length, query rows, query heads of a KV head, head_dim): no two odd in the same way
SHAPES = [
    (1, 1, 1, 32),
    (63, 7, 4, 64),
    (257, 32, 7, 40),
    (1025, 32, 1, 128),
    (130, 1, 3, 256),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Relative to the largest number of a row: what rounding the inputs of products costs.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def draw(
    *shape: int, seed: int, dtype: torch.dtype = torch.float32, strided: bool = False
) -> Tensor:
    """Normal numbers; strided: a transposed slice of something larger, as views of caches are."""
    generator = torch.Generator().manual_seed(seed)
    if not strided:
        return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)
    batch, heads, rows, dim = shape
    wide = torch.randn(batch, rows + 3, heads, dim + 5, generator=generator)
    return wide.to(dtype).to(DEVICE).transpose(1, 2)[:, :, 2 : 2 + rows, 1 : 1 + dim]


def causal(rows: int, length: int, behind: int = 0) -> Tensor:
    """bool [1, 1, rows, L]: queries are the last rows with `behind` more positions behind them."""
    position = torch.arange(length, device=DEVICE)
    return (position <= position[length - behind - rows : length - behind, None])[None, None]


def logits(queries: Tensor, keys: Tensor, scaling: float, visible: Tensor) -> Tensor:
    """float64 [B, H, W, L], -inf where a query does not see a key."""
    group = queries.shape[1] // keys.shape[1]
    every = queries.double() @ keys.double().repeat_interleave(group, 1).transpose(2, 3)
    return (every * scaling).masked_fill(~visible, -torch.inf)


def assert_close(got: Tensor, wanted: Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
    """Within the tolerance of the dtype of each row's largest number; nothing left unwritten."""
    assert got.shape == wanted.shape
    got = got.double()
    assert not got.isnan().any(), "not every element was written"
    infinite = wanted.isinf()
    assert torch.equal(got.isinf(), infinite)
    wanted = wanted.double().masked_fill(infinite, 0.0)
    error = (got.masked_fill(infinite, 0.0) - wanted).abs()
    size = wanted.abs().amax(-1, keepdim=True)
    assert bool((error <= factor * TOLERANCE[dtype] * size + 1e-30).all()), (
        f"off by {float((error / size.clamp_min(1e-30)).max()):.1e} of the largest number"
    )
