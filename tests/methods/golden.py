"""Our methods against stored outputs of their published code.

`python -m tests.methods.golden` prints how many cases pass.

Only what is decided at prefill: rows of later decoding steps are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import methods
from methods.lacache import block_shape, exact_ladder, ladder

ROOT = Path(__file__).parents[1] / "golden"
FOLDERS = ("restkv", "ablation", "snapkv", "h2o", "tova", "streaming", "lacache")
POOLS = {"adaptive": "adaptive", "avgpool": "avg", "maxpool": "max", "none": "none"}
TEMPORAL = {"none": "last", "mean": "mean", "ema": "ema", "inv-ema": "ema_reversed"}
Case = dict[str, Any]


@cache
def tensors(folder: str) -> dict[str, Tensor]:
    return load_file(ROOT / folder / "tensors.safetensors")


@cache
def inputs(name: str) -> dict[str, Tensor]:
    stored = load_file(ROOT / "inputs" / f"{name}.safetensors")
    return {key: tensor.float() for key, tensor in stored.items()}


def cases(folder: str) -> list[Case]:
    return json.loads((ROOT / folder / "cases.json").read_text())["cases"]


def all_cases() -> Iterator[tuple[str, Case]]:
    for folder in FOLDERS:
        for case in cases(folder):
            yield folder, case


def view(name: str, per_query_head: bool = True, length: int | None = None) -> methods.LayerView:
    """The stored inputs as a layer; the published code expands keys and values to query heads."""
    stored = inputs(name)
    keys, values, queries = stored["k"][:, :, :length], stored["v"][:, :, :length], stored["q"]
    if length is not None:
        queries = queries[:, :, :length]
    if per_query_head:
        group = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scaling = queries.shape[-1] ** -0.5
    return methods.LayerView(keys, values, queries, scaling, stored["Wo"])


def output(folder: str, case: Case, field: str) -> Tensor | None:
    return tensors(folder).get(f"{case['id']}.{field}")


def expect(condition: bool | Tensor, what: str) -> None:
    """Raise with one line; the counting command and the tests both show it."""
    if not bool(condition):
        raise AssertionError(what)


def expect_close(ours: Tensor, theirs: Tensor, what: str, rtol: float = 2e-5) -> None:
    worst = ((ours - theirs).abs() / theirs.abs().clamp_min(1e-30)).max()
    expect(torch.allclose(ours, theirs, rtol=rtol, atol=1e-12), f"{what}: off by {worst:.1e}")


def expect_same_sets(folder: str, case: Case, kept: Tensor, scores: Tensor) -> None:
    """Kept past positions equal the stored ones where the margin decides; ties by their scores."""
    theirs = output(folder, case, "idx").long()
    margin = output(folder, case, "rel_margin")
    expect(kept.shape == theirs.shape, f"kept {tuple(kept.shape)}, stored {tuple(theirs.shape)}")
    same = (kept == theirs.sort(-1).values).all(-1)
    expect((same | (margin <= 1e-4)).all(), "kept sets differ")
    ours, stored = scores.gather(-1, kept), scores.gather(-1, theirs)
    expect_close(ours.sort(-1).values, stored.sort(-1).values, "scores of the kept set")


def check_scored(
    folder: str, case: Case, policy: methods.Policy, layer: methods.LayerView, window: int
) -> None:
    """Scores, sets, protected window and order of a method that ranks past tokens."""
    past = layer.length - window
    budget = case["n_past_kept"] + window
    scores = policy.score(layer, budget)
    expect(scores[..., past:].isinf().all(), "the window is not protected")
    expect_close(scores[..., :past], output(folder, case, "score"), "score")
    kept = policy.keep(layer, budget)
    recent = torch.arange(past, layer.length)
    expect((kept[..., case["n_past_kept"] :] == recent).all(), "the window is not kept last")
    expect_same_sets(folder, case, kept[..., : case["n_past_kept"]], scores)


def restkv_policy(params: Case, official: bool) -> methods.Policy:
    return methods.build(
        "restkv",
        window=params["window_size"],
        temporal="ema" if params["use_ema"] else "mean",
        alpha=params["alpha"],
        metric=params["metric_mode"],
        project=params["use_wo"],
        tau=params["tau"],
        normalize=params["use_norm"],
        spatial=POOLS[params["pooling"]],
        kernel=params["kernel_size"],
        scale=params["scale"],
        official=official,
    )


def needs_official(case: Case) -> bool:
    """Where the released code departs from what its parameters say; see METHODS and ODDITIES."""
    params = case["params"]
    after, moved = params["metric_mode"] == "after", output("restkv", case, "t_shift")
    on_a_step = moved is not None and bool((moved % params["scale"] == 0).any())
    return (
        (case["inputs"] == "b96" and params["pooling"] == "adaptive")
        or (params["use_norm"] and after)
        or (params["tau"] != 1.0 and not (after and params["use_wo"]))
        or on_a_step
    )


def check_restkv(case: Case) -> None:
    params, layer = case["params"], view(case["inputs"])
    if case.get("unchanged"):
        kept = restkv_policy(params, False).keep(layer, params["max_capacity_prompt"])
        expect(kept.shape[-1] == int(output("restkv", case, "out_len")[0]), "evicted too much")
        return
    policy = restkv_policy(params, needs_official(case))
    window = params["window_size"]
    check_scored("restkv", case, policy, layer, window)
    raw = output("restkv", case, "score_raw")
    if raw is not None:
        expect_close(policy.measure(layer)[..., : raw.shape[-1]], raw, "score before pooling")
    kernels = output("restkv", case, "kernel_sizes")
    if kernels is not None and policy.plan(layer, case["n_past_kept"] + window).past:
        wide, shift = policy.windows(layer, [case["n_past_kept"]])
        wanted = kernels.clamp_min(params["kernel_size"]).long()
        expect((wide[0, 0] == wanted).all(), "adaptive widths differ")
        expect((shift[0, 0] == output("restkv", case, "shifts")).all(), "adaptive shifts differ")


def check_ablation(case: Case) -> None:
    params = case["params"]
    window = params["window_size"]
    if params["indicator"] == "reconstruction":
        policy = methods.build(
            "restkv",
            window=window,
            temporal=TEMPORAL[params["ts"]],
            spatial=POOLS[params["ss"]],
            alpha=params["fixed"]["ema_alpha"],
            kernel=params["fixed"]["pool_kernel"],
            scale=params["fixed"]["adaptive_scale"],
        )
    else:
        with_values = params["indicator"] == "attn-v"
        policy = methods.build("snapkv", window=window, kernel=5, value_norm=with_values)
    check_scored("ablation", case, policy, view(case["inputs"]), window)


def check_snapkv(case: Case) -> None:
    params, how = case["params"], case["gqa_score_agg"]
    policy = methods.build(
        "snapkv",
        window=params["window_size"],
        pool=POOLS[params["pooling"]],
        kernel=params["kernel_size"],
        group=how or "mean",
    )
    layer = view(case["inputs"], per_query_head=how is None)
    check_scored("snapkv", case, policy, layer, params["window_size"])


def check_h2o(case: Case) -> None:
    params = case["params"]
    if case["variant"] != "official":
        how = case["gqa_score_agg"]
        causal = case["variant"] == "kvcf"
        window = params["window_size"]
        policy = methods.build("h2o", recent=window, causal=causal, group=how or "mean")
        layer = view(case["inputs"], per_query_head=how is None)
        check_scored("h2o", case, policy, layer, window)
        return
    layer = view(case["inputs"], length=params["prefill_len"])
    policy = methods.build("h2o", recent=params["recent_size"])
    budget = params["hh_size"] + params["recent_size"]
    kept = policy.keep(layer, budget)
    expect((kept[0] == output("h2o", case, "kept_pos")[0]).all(), "kept sets differ")
    if params["decode_steps"] == 0 or layer.length > budget:
        ours = policy.measure(layer).gather(-1, kept)[0]
        expect_close(ours, output("h2o", case, "hh_score_first"), "column sums")


def check_tova(case: Case) -> None:
    params = case["params"]
    if case["kind"] == "e2e":
        check_tova_model(case)
        return
    layer = view(case["inputs"], length=params["prefill_len"])
    policy = methods.build("tova")
    scores = policy.score(layer, params["cache_size"])
    expect_close(scores[:, 0], output("tova", case, "score_first"), "head-mean attention")
    kept = policy.keep(layer, params["cache_size"])
    expect((kept == kept[:, :1]).all(), "heads differ")
    expect((kept[:, 0] == output("tova", case, "kept_pos")[0]).all(), "kept sets differ")


def check_tova_model(case: Case) -> None:
    """Sets after the prefill of a small model, from keys and queries its own forward computes."""
    from tests.methods.tiny_llama import layer_views

    policy = methods.build("tova")
    theirs = output("tova", case, "kept_pos")[0]
    for layer in layer_views(output("tova", case, "prompt_ids").long()):
        kept = policy.keep(layer, case["params"]["cache_size"])[0, 0]
        stored = theirs[layer.layer]
        expect(torch.equal(kept, stored[stored >= 0].long()), f"layer {layer.layer} differs")


def check_streaming(case: Case) -> None:
    params, mode = case["params"], case.get("mode")
    if case["variant"] == "restkv":
        length = int(case["id"].split("_")[1][1:])
        budget = params["max_capacity_prompt"]
        sinks = budget - params["window_size"]
    elif mode == "evict_range":
        length, sinks = params["prefill_len"], params["start"]
        budget = length - (params["end"] - params["start"])
    else:
        length, sinks = params["prefill_len"], params["start_size"]
        # "evict_for_space" makes room for the one token that comes next.
        budget = sinks + params["recent_size"] - (mode == "evict_for_space")
    steps = output("streaming", case, "kept_pos_steps")
    stored = output("streaming", case, "kept_pos") if steps is None else steps[0]
    stored = stored[stored >= 0].long()
    blank = torch.zeros(1, 1, length, 4)
    layer = methods.LayerView(blank, blank, blank[:, :, :0], 1.0)
    kept = methods.build("streaming_llm", sinks=sinks).keep(layer, budget)[0, 0]
    expect(torch.equal(kept, stored), "kept positions differ")


def lacache_stored(case: Case) -> list[list[int]]:
    """Positions each layer keeps after the prefill call."""
    length = case["params"]["prefill_len"]
    dropped = output("lacache", case, "dropped_pos")
    if dropped is not None:
        return [sorted(set(range(length)) - set(row)) for row in dropped.tolist()]
    first = output("lacache", case, "kept_pos")[0]
    return [[p for p in row if p >= 0] for row in first.tolist()]


def check_lacache(case: Case) -> None:
    """One compaction, at the capacity the released code gives itself at its first call."""
    params = case["params"]
    shape = (params["num_layers"], params["span"], params["overlap"])
    block, kept = block_shape(*shape)
    length, capacity = params["prefill_len"], params["cache_size"]
    if length > capacity:
        capacity += (block - kept) // 2
    for layer, stored in enumerate(lacache_stored(case)):
        ours = ladder(length, capacity, layer, *shape, params["start_size"])
        # The released code can repeat positions; ours must not.
        expect(ours == sorted(set(stored)), f"layer {layer} differs")


def lacache_by_policy(case: Case) -> bool:
    """Whether keeping as many tokens as the released code kept gives its exact sets."""
    params = case["params"]
    shape = (params["num_layers"], params["span"], params["overlap"], params["start_size"])
    return all(
        list(exact_ladder(params["prefill_len"], len(stored), layer, *shape)) == stored
        for layer, stored in enumerate(lacache_stored(case))
    )


CHECKS: dict[str, Callable[[Case], None]] = {
    "restkv": check_restkv,
    "ablation": check_ablation,
    "snapkv": check_snapkv,
    "h2o": check_h2o,
    "tova": check_tova,
    "streaming": check_streaming,
    "lacache": check_lacache,
}


def main() -> None:
    """Print how many stored cases pass, for each method."""
    total = passed = 0
    for folder in FOLDERS:
        failures = []
        for case in cases(folder):
            try:
                CHECKS[folder](case)
            except AssertionError as error:
                failures.append(f"    {case['id']}: {error}")
        count = len(cases(folder))
        total, passed = total + count, passed + count - len(failures)
        print(f"{folder:10} {count - len(failures):3} of {count:3}")
        print("\n".join(failures), end="\n" if failures else "")
    print(f"{'all':10} {passed:3} of {total:3}")


if __name__ == "__main__":
    main()
