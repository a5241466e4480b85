"""What dropping one token changes: the parts that both reconstructions are made of.

Must not know how changes are summed over heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import load_columns, load_rows
from .launch import jit, tl

LEAST = 1e-6  # below this, differences of float32 numbers near 1 are rounding
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
def load_parts(base, token, inside, stride, dim, dim_stride, CHUNKS, SIZE, UP):
    """All chunks of the values as a tuple, since registers cannot be sliced."""
    parts = ()
    for chunk in tl.static_range(CHUNKS):
        part = load_values(base, token, inside, stride, dim, dim_stride, chunk, SIZE, UP)
        parts = parts + (part,)  # noqa: RUF005, Triton knows no unpacking
    return parts


@jit
def moved(output, part, chunk, dim, dim_stride, SIZE: tl.constexpr):
    """o - v for one chunk of columns: o at `output`, v in `part` [N, SIZE]; float32."""
    d = chunk * SIZE + tl.arange(0, SIZE)
    o = tl.load(output + d * dim_stride, mask=d < dim, other=0.0).to(tl.float32)
    return o[None] - part.to(tl.float32)


@jit
def project(product, x, factor, first, chunk, rows, dim, f_row, f_dim, CHUNK, ROWS, UP):
    """product [N, ROWS] plus x [N, CHUNK] times those rows and columns of the factor."""
    r = first + tl.arange(0, ROWS)
    start = factor + chunk * CHUNK * f_dim
    block = load_columns(start, r, r < rows, f_row, dim - chunk * CHUNK, f_dim, CHUNK, UP)
    return tl.dot(x.to(block.dtype), block, product, input_precision="tf32x3")


@jit
def squared_lengths(
    parts, output, factor, dim, rows, o_dim, f_row, f_dim, CHUNKS, ROWS, CHUNK, UP, BLOCK
):
    """|| R (o - v) ||^2 with the values in registers, unrolled; float32 [BLOCK]."""
    squared = tl.zeros([BLOCK], tl.float32)
    xs = ()
    for chunk in tl.static_range(CHUNKS):
        xs = xs + (moved(output, parts[chunk], chunk, dim, o_dim, CHUNK),)  # noqa: RUF005
    for row in tl.static_range(ROWS):
        product = tl.zeros([BLOCK, CHUNK], tl.float32)
        for column in tl.static_range(row, CHUNKS):  # R is upper triangular
            product = project(
                product,
                xs[column],
                factor,
                row * CHUNK,
                column,
                rows,
                dim,
                f_row,
                f_dim,
                CHUNK,
                CHUNK,
                UP,
            )
        squared += tl.sum(product * product, 1)
    return squared


@jit
def squared_lengths_of_loaded(
    v,
    token,
    inside,
    v_token,
    v_dim,
    output,
    factor,
    dim,
    rows,
    o_dim,
    f_row,
    f_dim,
    CHUNKS,
    ROWS,
    CHUNK,
    UP,
    BLOCK,
):
    """The same with values read again for every product; without factors where ROWS is 0."""
    squared = tl.zeros([BLOCK], tl.float32)
    if ROWS == 0:
        for chunk in range(CHUNKS):
            part = load_values(v, token, inside, v_token, dim, v_dim, chunk, CHUNK, UP)
            x = moved(output, part, chunk, dim, o_dim, CHUNK)
            squared += tl.sum(x * x, 1)
    for row in range(ROWS):
        product = tl.zeros([BLOCK, CHUNK], tl.float32)
        for column in range(row, CHUNKS):
            part = load_values(v, token, inside, v_token, dim, v_dim, column, CHUNK, UP)
            x = moved(output, part, column, dim, o_dim, CHUNK)
            product = project(
                product, x, factor, row * CHUNK, column, rows, dim, f_row, f_dim, CHUNK, CHUNK, UP
            )
        squared += tl.sum(product * product, 1)
    return squared
