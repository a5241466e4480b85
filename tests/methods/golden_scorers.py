"""Methods whose stored scores cover the whole prompt, against NVIDIA's kvpress and others."""

from __future__ import annotations

import methods
from tests.methods.golden_data import Case, expect, expect_close, expect_same_sets, output, view


def check_knorm(case: Case) -> None:
    policy = methods.build("knorm")
    layer = view(case["inputs"], per_query_head=False)
    scores = policy.score(layer, case["n_kept"])
    expect_close(scores, output("knorm", case, "score"), "score")
    expect_same_sets("knorm", case, policy.keep(layer, case["n_kept"]), scores)


def check_lagkv(case: Case) -> None:
    """Sets everywhere, and scores of the parts: what is always kept has another score there."""
    params = case["params"]
    sinks, lag = params["n_sink"], params["lag_size"]
    policy = methods.build("lagkv", sinks=sinks, lag=lag, cross=params["cross_scoring"])
    layer = view(case["inputs"], per_query_head=False)
    scored = slice(sinks, sinks + max(0, (layer.length - sinks) // lag - 1) * lag)
    if scored.stop > scored.start:
        ranked = params["code"] == "kvpress" and not params["cross_scoring"]
        measure = methods.build("lagkv", sinks=sinks, lag=lag, cross=not ranked).measure
        stored = output("lagkv", case, "score")[..., scored]
        expect_close(measure(layer)[..., scored], stored, "score")
    kept = policy.keep(layer, case["n_kept"])
    expect((kept == output("lagkv", case, "idx").sort(-1).values).all(), "kept sets differ")
