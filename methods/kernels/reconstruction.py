"""How far a head's output moves when one token is dropped. Must not know windows or budgets.

Dropping token j with attention a changes a head's output by a / (1 - a) * (o - v_j) (arXiv
2605.08840, and 2504.14051 without the projection). Its norm after the output projection W_O needs
only R of W_O = Q R, since Q preserves lengths: d x d instead of hidden x d, and no tensor with the
hidden size.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_LEAST = 1e-6  # below this, differences of float32 numbers near 1 are rounding
_BLOCK_ELEMENTS = 1 << 25  # float32 elements of the largest temporary: 128 MiB

# weight -> (what it held, {head groups: factors}); an entry dies with its weight.
_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def output_factors(weight: Tensor, groups: int) -> Tensor:
    """R of the QR factorisation of each group's columns of W_O, float32 [groups, r, columns].

    weight [C, H * d]; groups = H for one factor a head, or Hkv for one a group of query heads;
    columns = H * d / groups and r = min(C, columns). Computed once for each weight, and again if
    the weight is changed in place, moved, cast or given other data.
    """
    version = 0 if weight.is_inference() else weight._version
    held = (version, weight.data_ptr(), weight.dtype, weight.device)
    entry = _factors.get(weight)
    if entry is None or entry[0] != held:
        entry = (held, {})
        _factors[weight] = entry
    if groups not in entry[1]:
        columns = weight.detach().float().unflatten(1, (groups, -1)).transpose(0, 1)
        entry[1][groups] = torch.linalg.qr(columns, mode="r").R.contiguous()
    return entry[1][groups]


def reconstruction(
    attention: Tensor,
    outputs: Tensor,
    values: Tensor,
    factors: Tensor | None,
    tau: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """a / (1 - a) * || R (o - v_j) ||^tau for every query head and token, float32 [B, H, L].

    attention a [B, H, L], outputs o [B, H, d], values [B, Hkv, L, d], factors [H, r, d] or None for
    the norm in value space. normalize divides by || R o ||.

    A key that takes all attention has o = v_j and 1 - a = 0. With 1 - a held at 1e-6 and the
    distance at 1e-6 || R o || it scores || R v_j ||, the limit when nothing else is attended to.
    """
    heads = outputs.unflatten(1, (values.shape[1], -1))[:, :, :, None]  # [B, Hkv, g, 1, d]
    pieces = []
    for start, stop in _blocks(attention, values.shape[-1]):
        moved = (heads - values[:, :, None, start:stop].float()).flatten(1, 2)  # [B, H, block, d]
        pieces.append(_length(moved, factors))
    distance = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
    size = _length(outputs[:, :, None], factors)  # [B, H, 1]
    distance = torch.maximum(distance, _LEAST * size)
    change = _odds(attention) * (distance if tau == 1.0 else distance.pow(tau))
    return change / size.clamp_min(_LEAST) if normalize else change


def joint_reconstruction(
    attention: Tensor, outputs: Tensor, values: Tensor, factors: Tensor | None
) -> Tensor:
    """|| sum_h a_h / (1 - a_h) R_h (o_h - v_j) || over the query heads of each KV head.

    float32 [B, Hkv, L]: the exact change of the layer's output when a KV head drops token j.
    factors [Hkv, r, g * d] come from `output_factors(weight, Hkv)`; None sums the heads in value
    space. A key that takes all attention of a head counts as in `reconstruction`.
    """
    kv_heads, dim = values.shape[1], values.shape[3]
    heads = outputs.unflatten(1, (kv_heads, -1))[:, :, :, None]  # [B, Hkv, g, 1, d]
    odds = _odds(attention).unflatten(1, (kv_heads, -1))  # [B, Hkv, g, L]
    pieces = []
    for start, stop in _blocks(attention, dim):
        moved = heads - values[:, :, None, start:stop].float()
        moved = moved * odds[:, :, :, start:stop, None]  # [B, Hkv, g, block, d]
        joined = moved.sum(2) if factors is None else moved.transpose(2, 3).flatten(3)
        pieces.append(_length(joined, factors))
    own = None if factors is None else factors.unflatten(2, (-1, dim)).transpose(1, 2).flatten(0, 1)
    size = _length(outputs[:, :, None], own).unflatten(1, (kv_heads, -1))  # [B, Hkv, g, 1]
    return torch.maximum(torch.cat(pieces, dim=-1), (odds * (_LEAST * size)).amax(2))


def _length(vectors: Tensor, factors: Tensor | None) -> Tensor:
    """|| R x || for vectors x [B, heads, N, d] and factors R [heads, r, d]; [B, heads, N]."""
    if factors is not None:
        vectors = torch.matmul(vectors, factors.transpose(1, 2))
    return torch.linalg.vector_norm(vectors, dim=-1)


def _odds(attention: Tensor) -> Tensor:
    return attention / (1.0 - attention).clamp_min(_LEAST)


def _blocks(attention: Tensor, dim: int) -> list[tuple[int, int]]:
    batch, heads, length = attention.shape
    size = max(1, _BLOCK_ELEMENTS // (batch * heads * dim))
    return [(start, min(start + size, length)) for start in range(0, length, size)]
