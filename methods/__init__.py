"""Eviction policies for KV caches: which tokens of a layer to keep at a budget.

Torch only; it must not know models, configurations or the harness.
"""

from __future__ import annotations

import math
from fractions import Fraction

from .full import Full
from .h2o import H2O
from .lacache import LaCache
from .policy import LayerView, Policy, Selection
from .random import Random
from .restkv import RestKV
from .snapkv import SnapKV
from .streaming_llm import StreamingLLM
from .tova import TOVA

__all__ = ["LayerView", "Policy", "Selection", "budget", "build", "names", "parameters"]

_POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (Full, Random, StreamingLLM, SnapKV, H2O, TOVA, LaCache, RestKV)
}


def names() -> tuple[str, ...]:
    """Names that `build` takes."""
    return tuple(_POLICIES)


def build(name: str, **params: object) -> Policy:
    """The policy with these parameters. ValueError for an unknown name, parameter or value."""
    known = parameters(name)
    for parameter in params:
        if parameter not in known:
            takes = "it takes " + ", ".join(known) if known else "it takes none"
            raise ValueError(f"{name} has no parameter {parameter!r}; {takes}.")
    return _POLICIES[name](**params)


def parameters(name: str) -> dict[str, object]:
    """Parameters of a method with their defaults. ValueError for an unknown name."""
    if name not in _POLICIES:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(_POLICIES)}.")
    return _POLICIES[name]().params


def budget(length: int, ratio: float) -> int:
    """Tokens kept of `length` when the fraction `ratio` in [0, 1) is evicted: L - floor(ratio * L).

    The ratio is read as the decimal that was meant: 0.7 of 10 tokens is 7, not 6. At least one
    token stays. ValueError for a ratio outside [0, 1) or a length below 1.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise ValueError(
            f"ratio={ratio!r} is not a fraction of tokens to evict; give 0 <= ratio < 1."
        )
    if length < 1:
        raise ValueError(f"length={length} leaves nothing to keep; give at least one token.")
    evicted = math.floor(Fraction(ratio).limit_denominator(10**6) * length)
    return max(1, length - evicted)
