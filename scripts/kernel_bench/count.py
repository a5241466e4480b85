"""What an operation must move, compute and hold, counted from its shape.

bytes: each input read once and each result written once a pass, so that bytes / bandwidth is a time
no implementation of these passes beats. flops: of matrix products, 2 a multiply and add, over the
pairs of query and key that are visible (in a window: all, tiles do not skip its corner).
temporary: bytes of results, and of what has to exist meanwhile; meter.held sees what the code
around the kernels really allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.view import PART_BYTES

from .shapes import Shape

_F32 = 4  # bytes


@dataclass(frozen=True)
class Count:
    """Bytes moved, matrix FLOPs, bytes held at once."""

    bytes: int
    flops: int = 0
    temporary: int = 0

    def __add__(self, other: Count) -> Count:
        """One after the other: scratch of the first is gone before the second, results are not
        told from scratch, so the larger of both counts."""
        return Count(
            self.bytes + other.bytes,
            self.flops + other.flops,
            max(self.temporary, other.temporary),
        )


def _keys(shape: Shape) -> int:
    return shape.kv_heads * shape.length * shape.dim * shape.itemsize


def _queries(shape: Shape, rows: int) -> int:
    return shape.heads * rows * shape.dim * shape.itemsize


def _products(shape: Shape, rows: int) -> int:
    """FLOPs of `rows` queries of every head against all keys."""
    return 2 * shape.heads * rows * shape.length * shape.dim


def _pairs(length: int) -> int:
    """Query and key pairs under a causal mask."""
    return length * (length + 1) // 2


def window_lse(shape: Shape, rows: int | None = None) -> Count:
    """Keys and window queries in, one number a row out."""
    rows = rows or shape.window
    result = shape.heads * rows * _F32
    moved = _keys(shape) + _queries(shape, rows) + result
    return Count(moved, _products(shape, rows), result)


def window_columns(shape: Shape, rows: int | None = None, values: bool = True) -> Count:
    """Keys, window queries, their log-sum-exp, weights and values in; a column sum for each head
    and key, and one output a head, out."""
    rows = rows or shape.window
    result = shape.heads * (shape.length + (shape.dim if values else 0)) * _F32
    moved = _keys(shape) + _queries(shape, rows) + (shape.heads + 1) * rows * _F32 + result
    flops = _products(shape, rows)
    if values:
        moved += _keys(shape)
        flops += 2 * shape.heads * (shape.length - rows) * shape.dim
    return Count(moved, flops, result)


def reconstruction(shape: Shape) -> Count:
    """Columns, outputs, values and factors in; one number a KV head and token out.

    Each distance is one product with a factor R [r, d], r = min(C, d), without the zeros below its
    diagonal.
    """
    rank = min(shape.hidden, shape.dim)
    entries = rank * (rank + 1) // 2 + rank * (shape.dim - rank)
    result = shape.kv_heads * shape.length * _F32
    columns = shape.heads * (shape.length + shape.dim) * _F32
    factors = shape.heads * rank * shape.dim * _F32
    flops = 2 * shape.heads * shape.length * entries
    return Count(_keys(shape) + columns + factors + result, flops, result)


def pooling(shape: Shape) -> Count:
    """A score a KV head and token in and out."""
    result = shape.kv_heads * shape.length * _F32
    return Count(2 * result, 0, result)


def top_positions(shape: Shape) -> Count:
    """Attention rows of the window in, a mean position a row out."""
    rows = shape.heads * shape.window
    result = rows * 8
    return Count(rows * shape.length * _F32 + result, 0, result)


def row_lse(shape: Shape) -> Count:
    """All queries and keys in, one number a query out."""
    result = shape.heads * shape.length * _F32
    moved = _keys(shape) + _queries(shape, shape.length) + result
    return Count(moved, 2 * shape.heads * shape.dim * _pairs(shape.length), result)


def column_sums(shape: Shape, given: bool) -> Count:
    """All queries, keys and their log-sum-exp in, one sum a head and key out.

    given: the log-sum-exp exists, else a pass of its own comes before.
    """
    own = row_lse(shape)
    moved = own.bytes + shape.heads * shape.length * _F32
    count = Count(moved, own.flops, own.temporary)
    return count if given else own + Count(moved, own.flops, 2 * own.temporary)


def gather(shape: Shape) -> Count:
    """Kept keys and values and their places in, the same entries side by side out."""
    entries = 2 * shape.kv_heads * shape.budget * shape.dim * shape.itemsize
    return Count(2 * entries + shape.kv_heads * shape.budget * 8, 0, entries)


def restkv_score(shape: Shape, active: bool) -> Count:
    """The passes of ReST-KV one after the other: K twice, V twice, H x L columns written and read.

    active: the adaptive window needs mean positions of top keys, from rows that exist only then.
    """
    columns = shape.heads * shape.length * _F32
    passes = window_lse(shape) + window_columns(shape) + reconstruction(shape) + pooling(shape)
    count = Count(passes.bytes, passes.flops, columns + 2 * pooling(shape).temporary)
    return count + _window_rows(shape) + top_positions(shape) if active else count


def _window_rows(shape: Shape) -> Count:
    """Keys and window queries in, attention rows out: those of a KV head, or of as many as fit."""
    rows = shape.heads * shape.window * shape.length * _F32
    moved = _keys(shape) + _queries(shape, shape.window) + rows
    held = min(rows, max(PART_BYTES, rows // shape.kv_heads))
    return Count(moved, _products(shape, shape.window), held)


def snapkv_score(shape: Shape) -> Count:
    """K twice, H x L columns written and read, then group mean and pooling."""
    columns = shape.heads * shape.length * _F32
    mean = Count(columns + pooling(shape).temporary)
    passes = window_lse(shape) + window_columns(shape, values=False) + mean + pooling(shape)
    return Count(passes.bytes, passes.flops, columns + 2 * pooling(shape).temporary)


def tova_score(shape: Shape) -> Count:
    """K twice for one row a head, then the mean over heads."""
    columns = shape.heads * shape.length * _F32
    mean = Count(columns + shape.length * _F32)
    passes = window_lse(shape, 1) + window_columns(shape, 1, values=False) + mean
    return Count(passes.bytes, passes.flops, columns + shape.length * _F32)


def h2o_score(shape: Shape, given: bool = False) -> Count:
    """Column sums, then the mean over each group."""
    sums, result = column_sums(shape, given), shape.kv_heads * shape.length * _F32
    held = sums.temporary + result
    return Count(sums.bytes + shape.heads * shape.length * _F32 + result, sums.flops, held)


def prefill(shape: Shape) -> Count:
    """Flash attention of all queries: Q, K and V in, outputs out."""
    outputs = _queries(shape, shape.length)
    flops = 4 * shape.heads * shape.dim * _pairs(shape.length)
    return Count(2 * outputs + 2 * _keys(shape), flops, outputs)
