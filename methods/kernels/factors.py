"""What the output projection W_O does to lengths, once for each weight.

Knows weights and dtypes; must not know what is measured with the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# tensor -> (what it held, {key: what was made of it}); an entry dies with its tensor.
_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_rounded: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def output_factors(weight: Tensor, groups: int) -> Tensor:
    """R of the QR factorisation of each group's columns of W_O, float32 [groups, r, columns].

    weight [C, H * d]; groups = H for one factor a head, or Hkv for one a group of query heads;
    columns = H * d / groups and r = min(C, columns). || R x || is the length of W_O x, and R is
    upper triangular. Computed once for each weight, and again if the weight is changed in place,
    moved, cast or given other data.
    """

    def factorise() -> Tensor:
        columns = weight.detach().float().unflatten(1, (groups, -1)).transpose(0, 1)
        return torch.linalg.qr(columns, mode="r").R.contiguous()

    factors: Tensor = _once(_factors, weight, groups, factorise)
    return factors


def rounded_factors(factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Factors as a product in `dtype` takes them; the same tensor where they do not fit into it.

    Rounded once for each tensor of factors and dtype, and only then does the host wait, to see
    whether float16 overflows.
    """

    def rounded() -> Tensor | None:
        narrow = factors.to(dtype)
        fits = dtype != torch.float16 or narrow.is_meta or bool(narrow.isfinite().all())
        return narrow if fits else None  # an entry that held its own tensor would never die

    if factors.dtype == dtype:
        return factors
    narrow: Tensor | None = _once(_rounded, factors, dtype, rounded)
    return factors if narrow is None else narrow


def _once(
    store: WeakTensorKeyDictionary, tensor: Tensor, key: Hashable, make: Callable[[], Tensor | None]
) -> Any:
    """make(), or what it gave the last time if the tensor has not changed since."""
    version = 0 if tensor.is_inference() else tensor._version
    held = (version, tensor.data_ptr(), tensor.dtype, tensor.device)
    entry = store.get(tensor)
    if entry is None or entry[0] != held:
        entry = (held, {})
        store[tensor] = entry
    if key not in entry[1]:
        entry[1][key] = make()
    return entry[1][key]
