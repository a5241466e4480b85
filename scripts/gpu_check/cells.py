"""The cells of the default sweep: full cache, and twelve methods and variants at five ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import methods
from harness.engine import Branch
from harness.settings.caches import HostValues, PQKeys, Quantized, Storage

RATIOS = (0.5, 0.7, 0.8, 0.9, 0.95)
GROWING: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "snapkv": ("snapkv", {}),
    "keydiff": ("keydiff", {}),
    "restkv": ("restkv", {}),
    "restkv_mean": ("restkv", {"temporal": "mean"}),
    "restkv_nospatial": ("restkv", {"spatial": "none"}),
    "restkv_neither": ("restkv", {"temporal": "mean", "spatial": "none"}),
    "restkv_relative": ("restkv", {"relative_scale": 0.05}),
}
HOLDING: dict[str, tuple[str, dict[str, Any]]] = {
    "streaming_llm": ("streaming_llm", {}),
    "h2o": ("h2o", {}),
    "tova": ("tova", {}),
    "lacache": ("lacache", {}),
}
WHOLE = {**GROWING, **HOLDING}
CACHES: tuple[Storage, ...] = (
    Quantized(4, 8, 4), PQKeys(3, 4, 4), PQKeys(3, 4, 4, 0.8), HostValues(0.8, 4),
)  # fmt: skip


def stored(window: int) -> list[Branch]:
    """All entries, and half of them, in every kind of cache, beside the full cache."""
    policy = methods.build("snapkv", window=window)
    half = [Branch(policy, 0.5, cache=cache) for cache in CACHES]
    return [Branch(), *(Branch(cache=cache) for cache in CACHES), *half]


def branches(
    wanted: dict[str, tuple[str, dict[str, Any]]], ratios: Sequence[float] = RATIOS, **changes: Any
) -> list[Branch]:
    """The full cache, then each method at each ratio. changes: of parameters that a method has."""
    found = [Branch()]
    for method, params in wanted.values():
        known = methods.parameters(method)
        own = {name: value for name, value in changes.items() if name in known}
        policy = methods.build(method, **params, **own)
        found += [Branch(policy, ratio) for ratio in ratios]
    return found
