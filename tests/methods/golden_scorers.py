"""Methods whose stored scores cover the whole prompt, against NVIDIA's kvpress and others."""

from __future__ import annotations

import dataclasses

import torch

import methods
from tests.methods.golden_data import (
    POOLS,
    Case,
    check_scored,
    expect,
    expect_close,
    expect_same_sets,
    output,
    view,
)
from tests.methods.views import HalfTurns


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


def check_chunkkv(case: Case) -> None:
    """Windows end at chunks in these cases; kvpress sums over heads and means over the window."""
    params = case["params"]
    window, chunk = params["window_size"], params["chunk_length"]
    policy = methods.build("chunkkv", window=window, kernel=params["kernel_size"], chunk=chunk)
    layer = view(case["inputs"], per_query_head=False)
    past = layer.length - window
    ours = policy.score(layer, case["n_kept"])
    expect(ours[..., past:].isinf().all(), "the window is not protected")
    scaled = ours[..., :past] * layer.kv_heads / window
    expect_close(scaled, output("chunkkv", case, "score")[..., :past], "score")
    kept = policy.keep(layer, case["n_kept"])
    same = (kept == output("chunkkv", case, "idx").sort(-1).values).all(-1)
    expect((same | (output("chunkkv", case, "rel_margin") <= 1e-4)).all(), "kept sets differ")


def check_post_vision(case: Case) -> None:
    """Scores of what lies before the recent tokens, and the whole set."""
    params = case["params"]
    policy = methods.build("post_vision", shared=params["shared"])
    layer = view(case["inputs"], per_query_head=False)
    kinds = torch.zeros(layer.batch, layer.length, dtype=torch.long)
    kinds[:, 5 : layer.length - params["post_vision"]] = 1
    layer = dataclasses.replace(layer, modality=kinds)
    past = layer.length - params["n_window"]
    selection = policy.select_many(layer, [case["n_kept"]])[0]
    expect(selection.window == params["n_window"], f"{selection.window} recent tokens")
    scores = policy.score(layer, case["n_kept"])
    expect_close(scores[..., :past], output("post_vision", case, "score")[..., :past], "score")
    stored = output("post_vision", case, "idx").sort(-1).values
    same = (selection.positions == stored).all(-1)
    expect((same | (output("post_vision", case, "rel_margin") <= 1e-4)).all(), "sets differ")


def check_expected_attention(case: Case) -> None:
    """The stored queries are not rotated; ours come rotated and are turned back."""
    params = case["params"]
    policy = methods.build(
        "expected_attention",
        future=params["n_future_positions"],
        sinks=params["n_sink"],
        covariance=params["use_covariance"],
        value_norm=params["use_vnorm"],
        epsilon=params["epsilon"],
    )
    layer = view(case["inputs"], per_query_head=False)
    turns = HalfTurns(layer.length, layer.queries.shape[-1], base=10_000.0)
    queries = turns.rotate(layer.queries)
    layer = dataclasses.replace(layer, queries=queries, rotation=turns)
    scores, behind = policy.score(layer, case["n_kept"]), slice(params["n_sink"], None)
    stored = output("expected_attention", case, "score")[..., behind]
    expect_close(scores[..., behind], stored, "score", rtol=5e-5)
    same = (
        policy.keep(layer, case["n_kept"])
        == output("expected_attention", case, "idx").sort(-1).values
    ).all(-1)
    expect((same | (output("expected_attention", case, "rel_margin") <= 1e-4)).all(), "sets differ")


def check_mixkv(case: Case) -> None:
    """Where it is no number for all, the weight of each head is that of the prompt's own keys."""
    params = case["params"]
    policy = methods.build(
        "mixkv",
        window=params["window_size"],
        pool=POOLS[params["pooling"]],
        kernel=params["kernel_size"],
        group=params["gqa_func"],
        diversity=params["diversity"],
    )
    layer = view(case["inputs"], per_query_head=False)
    keys = layer.keys + params["key_offset"] * layer.keys[:, :, :1]
    layer = dataclasses.replace(layer, keys=keys)
    check_scored("mixkv", case, policy, layer, policy.window, rtol=1e-4)  # the lowest is nearly 0


def check_finch(case: Case) -> None:
    """The question is what the delimiter ended the context before."""
    params = case["params"]
    policy = methods.build("finch", normalize=params["normalize_scores"])
    layer = view(case["inputs"], per_query_head=False)
    past = layer.length - params["window_size"]
    layer = dataclasses.replace(layer, context=past)
    scores = policy.score(layer, case["n_kept"])
    expect(scores[..., past:].isinf().all(), "the question is not protected")
    expect_close(scores[..., :past], output("finch", case, "score"), "score")
    kept = policy.keep(layer, case["n_kept"])
    same = (kept == output("finch", case, "idx")).all(-1)
    expect((same | (output("finch", case, "rel_margin") <= 1e-4)).all(), "kept sets differ")


def check_infinipot_v(case: Case) -> None:
    """Kept sets, and what the tokens of earlier frames score beside the last ones."""
    params, system = case["params"], case["params"]["system_size"]
    layer = view(case["inputs"], per_query_head=False, length=params["length"])
    kinds = torch.ones(1, layer.length, dtype=torch.long)
    kinds[:, :system] = 0
    layer = dataclasses.replace(layer, modality=kinds)
    policy = methods.build(
        "infinipot_v",
        temporal=params["tar_ratio"],
        recent=params["query_ratio"],
        frame=params["token_per_frame"],
    )
    selection = policy.select_many(layer, [case["n_kept"]])[0]
    stored, margin = (output("infinipot_v", case, name) for name in ("temporal", "rel_margin"))
    if stored is not None:
        changed = policy._changed(layer, policy._frames(layer), 0)
        earlier = slice(system, system + stored.shape[-1])
        close = torch.allclose(changed[0, :, earlier], stored, atol=2e-6)
        expect(close, "frames are compared otherwise")
        margin = torch.minimum(margin, output("infinipot_v", case, "temporal_rel_margin"))
    theirs = output("infinipot_v", case, "idx").long().sort(-1).values
    same = (selection.positions[0] == theirs).all(-1) | (margin <= 1e-5)
    expect(same.all(), "kept sets differ")
    expect(selection.fallback is None, f"it was {selection.fallback}")
