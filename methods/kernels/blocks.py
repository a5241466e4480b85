"""What kernels share: reading blocks of vectors. Must not know what they are read for."""

from __future__ import annotations

from .launch import jit, tl


@jit
def load_rows(base, index, inside, stride, dim, dim_stride, DIMS: tl.constexpr, UP: tl.constexpr):
    """Vectors `index` [N] of the matrix at `base` as [N, DIMS]; zeros where not `inside` [N].

    UP: widen to float32 at once (`launch.upcast`).
    """
    d = tl.arange(0, DIMS)
    at = base + index.to(tl.int64)[:, None] * stride + d[None] * dim_stride
    block = tl.load(at, mask=inside[:, None] & (d < dim)[None], other=0.0)
    return block.to(tl.float32) if UP else block


@jit
def load_columns(
    base, index, inside, stride, dim, dim_stride, DIMS: tl.constexpr, UP: tl.constexpr
):
    """The same transposed, [DIMS, N]."""
    d = tl.arange(0, DIMS)
    at = base + index.to(tl.int64)[None] * stride + d[:, None] * dim_stride
    block = tl.load(at, mask=inside[None] & (d < dim)[:, None], other=0.0)
    return block.to(tl.float32) if UP else block
