"""What dropping one token changes: the parts that both reconstructions are made of.

Must not know how changes are summed over heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import load_rows
from .launch import jit, tl

LEAST = 1e-6  # below this, differences of float32 numbers near 1 are rounding
CHUNK = 64  # columns of values and factors that go into one product
_BLOCK_ELEMENTS = 1 << 25  # float32 elements of the twins' largest temporary: 128 MiB


def lengths(vectors: Tensor, factors: Tensor | None) -> Tensor:
    """|| R x || for vectors x [B, heads, N, d] and factors R [heads, r, d]; [B, heads, N]."""
    if factors is not None:
        vectors = torch.matmul(vectors, factors.transpose(1, 2))
    return torch.linalg.vector_norm(vectors, dim=-1)


def odds(attention: Tensor) -> Tensor:
    """a / (1 - a) with 1 - a held at 1e-6."""
    return attention / (1.0 - attention).clamp_min(LEAST)


def blocks(attention: Tensor, dim: int) -> list[tuple[int, int]]:
    """Ranges of tokens that bound the twins' temporaries; attention [B, H, L]."""
    batch, heads, length = attention.shape
    size = max(1, _BLOCK_ELEMENTS // (batch * heads * dim))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


@jit
def load_odds(base, token, inside, stride, LEAST: tl.constexpr):
    """`odds` of the attention of tokens [N], float32; 0 where not `inside`."""
    attention = tl.load(base + token.to(tl.int64) * stride, mask=inside, other=0.0).to(tl.float32)
    return attention / tl.maximum(1.0 - attention, LEAST)


@jit
def load_values(base, token, inside, stride, dim, dim_stride, chunk, SIZE: tl.constexpr, UP):
    """Chunk of `SIZE` columns of the values of tokens [N] as [N, SIZE]."""
    start = base + chunk * SIZE * dim_stride
    return load_rows(start, token, inside, stride, dim - chunk * SIZE, dim_stride, SIZE, UP)


@jit
def moved(output, part, chunk, dim, dim_stride, SIZE: tl.constexpr):
    """o - v for one chunk of columns: o at `output`, v in `part` [N, SIZE]; float32."""
    d = chunk * SIZE + tl.arange(0, SIZE)
    o = tl.load(output + d * dim_stride, mask=d < dim, other=0.0).to(tl.float32)
    return o[None] - part.to(tl.float32)
