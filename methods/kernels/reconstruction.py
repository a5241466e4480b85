"""How far a head's output moves when one token is dropped. Must not know windows or budgets.

Dropping token j with attention a changes a head's output by a / (1 - a) * (o - v_j) (arXiv
2605.08840, and 2504.14051 without the projection). Its norm after the output projection W_O needs
only R of W_O = Q R, since Q preserves lengths: d x d instead of hidden x d, and no tensor with the
hidden size.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_BLOCK_ELEMENTS = 1 << 25  # float32 elements of the largest temporary: 128 MiB

# weight -> (version, {head groups: factors}); an entry dies with its weight.
_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def output_factors(weight: Tensor, groups: int) -> Tensor:
    """R of the QR factorisation of each group's columns of W_O, float32 [groups, r, columns].

    weight [C, H * d]; groups = H for one factor a head, or Hkv for one a group of query heads;
    columns = H * d / groups and r = min(C, columns). Computed once for each weight, and again if
    the weight is changed in place.
    """
    version = 0 if weight.is_inference() else weight._version
    entry = _factors.get(weight)
    if entry is None or entry[0] != version:
        entry = (version, {})
        _factors[weight] = entry
    if groups not in entry[1]:
        columns = weight.detach().float().unflatten(1, (groups, -1)).transpose(0, 1)
        entry[1][groups] = torch.linalg.qr(columns, mode="r").R.contiguous()
    return entry[1][groups]


def reconstruction(
    odds: Tensor, outputs: Tensor, values: Tensor, factors: Tensor | None, tau: float = 1.0
) -> Tensor:
    """odds * || R (o - v_j) ||^tau for every query head and token, float32 [B, H, L].

    odds [B, H, L], outputs o [B, H, d], values [B, Hkv, L, d], factors [H, r, d] or None for the
    norm in value space.
    """
    heads = outputs.unflatten(1, (values.shape[1], -1))[:, :, :, None]  # [B, Hkv, g, 1, d]
    pieces = []
    for start, stop in _blocks(odds, values.shape[-1]):
        moved = (heads - values[:, :, None, start:stop].float()).flatten(1, 2)  # [B, H, block, d]
        if factors is not None:
            moved = torch.matmul(moved, factors.transpose(1, 2))
        pieces.append(torch.linalg.vector_norm(moved, dim=-1))
    distance = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
    return odds * (distance if tau == 1.0 else distance.pow(tau))


def joint_reconstruction(
    odds: Tensor, outputs: Tensor, values: Tensor, factors: Tensor | None
) -> Tensor:
    """|| sum_h odds_h R_h (o_h - v_j) || over the query heads of a KV head, float32 [B, Hkv, L].

    The exact change of the layer's output when a KV head drops token j. factors [Hkv, r, g * d]
    come from `output_factors(weight, Hkv)`; None sums the heads in value space.
    """
    kv_heads = values.shape[1]
    heads = outputs.unflatten(1, (kv_heads, -1))[:, :, :, None]  # [B, Hkv, g, 1, d]
    weights = odds.unflatten(1, (kv_heads, -1))[..., None]  # [B, Hkv, g, L, 1]
    pieces = []
    for start, stop in _blocks(odds, values.shape[-1]):
        moved = weights[:, :, :, start:stop] * (heads - values[:, :, None, start:stop].float())
        if factors is None:
            moved = moved.sum(2)  # [B, Hkv, block, d]
        else:
            moved = moved.transpose(2, 3).flatten(3)  # [B, Hkv, block, g * d]
            moved = torch.matmul(moved, factors.transpose(1, 2))
        pieces.append(torch.linalg.vector_norm(moved, dim=-1))
    return torch.cat(pieces, dim=-1)


def _blocks(odds: Tensor, dim: int) -> list[tuple[int, int]]:
    batch, heads, length = odds.shape
    size = max(1, _BLOCK_ELEMENTS // (batch * heads * dim))
    return [(start, min(start + size, length)) for start in range(0, length, size)]
