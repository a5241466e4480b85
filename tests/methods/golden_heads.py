"""Budgets of heads by their importance, against the published code of HeadKV."""

from __future__ import annotations

import dataclasses

import torch

import methods
from tests.methods.golden_data import POOLS, ROOT, Case, expect, expect_close, output, view


def policy_of(case: Case) -> methods.Policy:
    params = case["params"]
    return methods.build(
        "headkv",
        importance=str(ROOT / "headkv" / case["scores"]),
        window=params["window_size"],
        pool=POOLS[params["pooling"]],
        kernel=params["kernel_size"],
        beta=params["beta"],
        temp=params["temp"],
    )


def check_headkv(case: Case) -> None:
    """Scores, tokens of each head of all layers, and the sets.

    The released code takes the mean over the window where SnapKV takes the sum, rounds each head by
    itself and drops what exceeds a prompt: elsewhere ours keep the same, else within 1, and the
    total is the one that was asked for.
    """
    params, policy = case["params"], policy_of(case)
    window, budget = params["window_size"], params["max_capacity_prompts"]
    whole, places = view(case["inputs"]), params["layers"]
    past = whole.length - window
    wanted = output("headkv", case, "head_capacity").long()
    theirs = wanted.clamp_max(past)
    stored, margins = output("headkv", case, "idx").long(), output("headkv", case, "rel_margin")
    scores, ours = output("headkv", case, "score"), []
    for number, (times, roll) in enumerate(places):
        layer = dataclasses.replace(
            whole,
            queries=whole.queries * times,
            keys=whole.keys.roll(roll, 2),
            values=whole.values.roll(roll, 2),
            layer=number,
            num_layers=len(places),
        )
        found = policy.score(layer, budget)[0, :, :past]
        if number < len(scores):
            expect_close(found / window, scores[number], "score")
        (chosen,) = policy.select_many(layer, [budget])
        ours.append(chosen.counts[0] - window)
        for head, kept in enumerate(chosen.positions[0]):
            kept = kept[kept >= 0]
            recent = torch.arange(past, whole.length)
            expect((kept[-window:] == recent).all(), "the window is not kept")
            own, count = stored[number, head], int(theirs[number, head])
            top = found[head].sort(descending=True, stable=True).indices[:count].sort().values
            same = torch.equal(top, own[:count].sort().values) and (own[count:] == -1).all()
            decided = margins[number, head] > 1e-4
            expect(same or not decided, f"head {head} of layer {number} keeps another set")
            if len(kept) == count + window and decided:
                expect(torch.equal(kept[:-window], top), "the policy keeps another set")
    counts = torch.stack(ours)
    expect(counts.sum() == case["target_capacity"], f"keeps {int(counts.sum())} tokens in all")
    spilled = bool((wanted > past).any())
    expect((counts[wanted > past] == past).all(), "a head with more than the prompt keeps less")
    expect((counts >= theirs - 1).all(), f"heads keep {counts.tolist()}, not {theirs.tolist()}")
    if not spilled:
        expect((counts <= theirs + 1).all(), f"heads keep {counts.tolist()}")
    if not spilled and case["sum_capacity"] == case["target_capacity"]:
        expect((counts == theirs).all(), f"heads keep {counts.tolist()}, not {theirs.tolist()}")
