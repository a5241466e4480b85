"""Every method in the settings that tests put through their properties: one row a setting."""

from __future__ import annotations

import pytest

import methods
from methods.budgets import RULES

VARIANTS = {
    "random": ("random", {}),
    "streaming_llm": ("streaming_llm", {}),
    "snapkv": ("snapkv", {"window": 8}),
    "snapkv_max_odd": ("snapkv", {"window": 7, "pool": "max", "kernel": 7, "group": "max"}),
    "criticalkv": ("criticalkv", {"window": 8}),
    "criticalkv_h2o": ("criticalkv_h2o", {"recent": 8}),
    "criticalkv_tova": ("criticalkv_tova", {}),
    "chunkkv": ("chunkkv", {"window": 8, "chunk": 4}),
    "chunkkv_own": ("chunkkv", {"window": 7, "chunk": 3, "kernel": 5, "shared": False}),
    "cake": ("cake", {"window": 8, "budget": "uniform"}),
    "cake_max": ("cake", {"window": 7, "gamma": 5.0, "group": "max", "budget": "uniform"}),
    "mixkv": ("mixkv", {"window": 8}),
    "mixkv_half": ("mixkv", {"window": 7, "diversity": 0.5, "pool": "max", "group": "max"}),
    "rkv": ("rkv", {}),
    "rkv_official": (
        "rkv",
        {"window": 5, "kernel": 3, "mix": 0.5, "threshold": 0.2, "official": True},
    ),
    "h2o": ("h2o", {}),
    "h2o_visible": ("h2o", {"recent": 8, "average": "visible_mean", "group": "max"}),
    "h2o_official": ("h2o", {"recent": 8, "causal": False}),
    "look_m": ("look_m", {"protect": "none", "recent": 3}),
    "tova": ("tova", {}),
    "tova_last": ("tova", {"protect_last": True}),
    "keydiff": ("keydiff", {}),
    "knorm": ("knorm", {}),
    "post_vision": ("post_vision", {}),
    "post_vision_max": ("post_vision", {"recent": 0, "group": "max"}),
    "expected_attention": ("expected_attention", {}),
    "expected_attention_mean": (
        "expected_attention",
        {"covariance": False, "value_norm": False, "sinks": 0, "future": 7},
    ),
    "infinipot_v": ("infinipot_v", {"protect": "none"}),
    "lagkv": ("lagkv", {"sinks": 2, "lag": 5}),
    "lagkv_cross": ("lagkv", {"sinks": 0, "lag": 4, "cross": True}),
    "lagkv_short": ("lagkv", {}),
    "lacache": ("lacache", {}),
    "lacache_span1": ("lacache", {"span": 1, "start": 2}),
    "restkv": ("restkv", {"window": 8}),
    "restkv_wide": ("restkv", {}),
    "restkv_mean": ("restkv", {"window": 7, "temporal": "mean", "spatial": "max"}),
    "restkv_none": ("restkv", {"window": 8, "temporal": "last", "spatial": "none"}),
    "restkv_relative": ("restkv", {"window": 7, "relative_scale": 0.02, "kernel": 3}),
    "restkv_official": ("restkv", {"window": 8, "scale": 3, "official": True}),
    "restkv_before": ("restkv", {"window": 8, "metric": "before", "normalize": True, "tau": 2.0}),
    "restkv_joint": ("restkv", {"window": 8, "group": "joint"}),
    "restkv_values": ("restkv", {"window": 8, "project": False, "group": "max", "spatial": "avg"}),
}

# Rows whose views must tell where the context ends, or what it got when it was repeated.
CONTEXTUAL = {
    "finch": ("finch", {}),
    "finch_window": ("finch", {"window": 7, "window_anchor": "end", "normalize": False}),
    "kvzip": ("kvzip", {}),
}
EVERY = {**VARIANTS, **CONTEXTUAL}

# What by default needs no file (test_trimkv.py, test_qfilters.py, test_headkv.py), no other layer's
# scores (test_layers.py), no images (test_merging.py, test_oracles_keys.py) and no marked context
# (tests/engine/test_finch.py, test_kvzip.py).
NAMES = tuple(
    name
    for name in methods.names()
    if not {"gates", "filters", "importance"} & {*methods.parameters(name)}
    and methods.parameters(name).get("budget") != "layers"
    and methods.parameters(name).get("protect") != "text"
    and name not in {own for own, _ in CONTEXTUAL.values()}
)

# Rules that a variant refuses.
REFUSED = {
    *(("chunkkv", "adaptive"), ("knorm", "adaptive"), ("infinipot_v", "adaptive")),
    *(("rkv", "adaptive"), ("rkv_official", "adaptive")),
}

MATRIX = [
    (variant, rule)
    for variant, (name, _) in EVERY.items()
    for rule in (RULES if "budget" in methods.parameters(name) else ("uniform",))
    if (variant, rule) not in REFUSED
]
HOLDING = [row for row in MATRIX if "decode" in methods.parameters(EVERY[row[0]][0])]


def label(row: tuple[str, str]) -> str:
    return row[0] if row[1] == "uniform" else "-".join(row)


every_row = pytest.mark.parametrize("row", MATRIX, ids=label)
every_holding_row = pytest.mark.parametrize("row", HOLDING, ids=label)


def build(row: tuple[str, str], **more: object) -> methods.Policy:
    name, params = EVERY[row[0]]
    rule = {} if row[1] == "uniform" else {"budget": row[1]}
    return methods.build(name, **{**params, **rule, **more})


def heads(selection: methods.Selection) -> list[list[list[int]]]:
    """Kept positions [B][Hkv] without the padding of heads that keep fewer."""
    return [[[p for p in head if p >= 0] for head in item] for item in selection.positions.tolist()]
