"""R-KV against its authors' code: evictions of a prompt, and those that follow while decoding."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

import methods
from tests.methods.golden_data import Case, expect, output, view
from tests.methods.golden_decode import decode


def check_rkv(case: Case) -> None:
    params = case["params"]
    layer = view(case["inputs"], per_query_head=False)
    keys = layer.keys + params["key_offset"] * layer.keys[:, :, :1]
    layer = dataclasses.replace(layer, keys=keys)
    (check_decode if case["kind"] == "decode" else check_prompt)(case, layer)


def policy_of(params: Case, official: bool = True) -> methods.Policy:
    buffer = params.get("buffer", 128)
    return methods.build(
        "rkv",
        window=params["window_size"],
        kernel=params["kernel_size"],
        mix=params["mix_lambda"],
        official=official,
        **({"decode": "hold"} if buffer == 1 else {"buffer": buffer}),
    )


def check_prompt(case: Case, layer: methods.LayerView) -> None:
    """Scores and sets; what `official` changes is due to keys that no other is like."""
    params, count = case["params"], case["n_past_kept"]
    policy, past = policy_of(params), layer.length - params["window_size"]
    stored = output("rkv", case, "redundancy")
    close(policy.measure(layer), stored, "redundancy")
    alike = torch.allclose(policy_of(params, False).measure(layer), stored, rtol=2e-5)
    expect(alike == (not case["lonely_keys"]), "official matters elsewhere")
    scores = policy.score(layer, params["budget"])
    close(scores[..., :past], output("rkv", case, "score"), "score")
    kept = policy.keep(layer, params["budget"])
    expect((kept[..., count:] == torch.arange(past, layer.length)).all(), "no window at the end")
    same = (kept[..., :count] == output("rkv", case, "idx").long().sort(-1).values).all(-1)
    expect((same | (output("rkv", case, "rel_margin") <= 1e-6)).all(), "kept sets differ")


def check_decode(case: Case, layer: methods.LayerView) -> None:
    """Every eviction, each from what the one before has left in the order of the tokens."""
    params, budget = case["params"], case["params"]["budget"]
    stored, scores = output("rkv", case, "kept_pos"), output("rkv", case, "score")
    last = params["prefill_len"] + (params["evictions"] - 1) * params["buffer"]
    layer = dataclasses.replace(
        layer,
        keys=layer.keys[:, :, :last],
        values=layer.values[:, :, :last],
        queries=layer.queries[:, :, :last],
    )
    frames = list(decode(policy_of(params), layer, params["prefill_len"], budget, budget))
    evicted = [frames[0], *(frame for frame in frames[1:] if frame.standing is not None)]
    expect(len(evicted) == len(stored), f"{len(evicted)} evictions, stored {len(stored)}")
    for step, (frame, theirs) in enumerate(zip(evicted, stored, strict=True)):
        expect(torch.equal(frame.kept[0], theirs.long()), f"kept sets differ at eviction {step}")
    for step, (frame, theirs) in enumerate(zip(evicted[1:], scores, strict=True)):
        past = theirs.shape[-1]
        expect(frame.standing[..., past:].isinf().all(), "the window is not protected")
        close(frame.standing[0, :, :past], theirs, f"score of eviction {step + 1}")


def close(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Scores may cancel: to a part of the largest."""
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    expect(worst <= 5e-6, f"{what}: off by {worst:.1e} of the largest")
