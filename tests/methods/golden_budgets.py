"""Budgets that differ by layer or head, against the published code of PyramidKV and AdaKV."""

from __future__ import annotations

import dataclasses

import methods
from methods.budgets import adaptive, pyramid
from tests.methods.golden_data import (
    POOLS,
    Case,
    check_scored,
    expect,
    expect_close,
    output,
    view,
)


def snapkv(params: Case, group: str | None = None, **more: object) -> methods.Policy:
    return methods.build(
        "snapkv",
        window=params["window_size"],
        pool=POOLS[params["pooling"]],
        kernel=params["kernel_size"],
        group=group or "mean",
        **more,
    )


def check_adakv(case: Case) -> None:
    """Scores, tokens of each head, and the sets at the numbers the released code came to.

    It takes the mean over the window where SnapKV takes the sum, which moves no choice. It rounds
    each head by itself: where that keeps the total, ours are the same, else within 1.
    """
    params, how = case["params"], case["gqa_score_agg"]
    window, base = params["window_size"], params["base_capacity"]
    layer = view(case["inputs"], per_query_head=how is None)
    past = layer.length - window
    scores = snapkv(params, how).score(layer, base + window)[..., :past]
    expect_close(scores / window, output("adakv", case, "score"), "score")

    ranked = scores.sort(dim=-1, descending=True).values
    ours = adaptive(ranked, base, params["floor"], params["normalize"])[0]
    theirs = output("adakv", case, "head_capacity").long()
    expect(ours.sum() == case["target_capacity"], f"keeps {int(ours.sum())} tokens in all")
    expect(((ours - theirs).abs() <= 1).all(), f"heads keep {ours.tolist()}, not {theirs.tolist()}")
    decided = output("adakv", case, "global_rel_margin") > 1e-4
    if decided and case["sum_capacity"] == case["target_capacity"]:
        expect((ours == theirs).all(), f"heads keep {ours.tolist()}, not {theirs.tolist()}")
    if params["normalize"]:
        policy = snapkv(params, how, budget="adaptive", adaptive_floor=params["floor"])
        counts = policy.select_many(layer, [base + window])[0].counts
        expect((counts == ours + window).all(), "the policy keeps other numbers")

    stored, margins = output("adakv", case, "idx"), output("adakv", case, "rel_margin")
    for head, (row, margin) in enumerate(zip(stored.long(), margins, strict=True)):
        row = row[row >= 0]
        of_head = scores[0, head]
        top = of_head.sort(descending=True, stable=True).indices[: len(row)]
        same = (top.sort().values == row.sort().values).all()
        expect(same or margin <= 1e-4, f"head {head} keeps another set")
        expect_close(of_head[top], of_head[row].sort(descending=True).values, "scores of the set")


def check_pyramidkv(case: Case) -> None:
    """The line of budgets, and at the released code's own number the scores and the set.

    It rounds the step down, so later layers keep more than the line says and the total exceeds the
    budget; ours keep the total.
    """
    params = case["params"]
    window, layers = params["window_size"], params["num_hidden_layers"]
    room = case["L"] - window
    count = min(params["max_capacity_prompt"] - window, room)
    line = pyramid(count, room, layers, params["beta"], case["L"])
    expect(sum(line) == count * layers, f"keeps {sum(line)} tokens in all")
    expect(list(line) == sorted(line, reverse=True), "a layer keeps more than the one before")
    if case["kind"] == "budget":
        stored = [length - window for length in output("pyramidkv", case, "out_len_per_layer")]
        expect(line[0] == stored[0], f"the first layer keeps {line[0]}, not {stored[0]}")
        within = all(ours <= theirs + 1 for ours, theirs in zip(line, stored, strict=True))
        expect(within, f"layers keep {line}, not {stored}")
        if case["total"] == case["flat_total"]:
            expect(list(line) == stored, f"layers keep {line}, not {stored}")
        return
    layer = view(case["inputs"])
    check_scored("pyramidkv", case, snapkv(params), layer, window)
    number = params["layer_idx"]
    layer = dataclasses.replace(layer, layer=number, num_layers=layers)
    policy = snapkv(params, budget="pyramid", pyramid_beta=params["beta"])
    kept = policy.keep(layer, params["max_capacity_prompt"]).shape[-1]
    expect(kept == line[number] + window, f"the policy keeps {kept}")
    expect(line[number] <= case["n_past_kept"] + 1, "keeps more than the released code")
