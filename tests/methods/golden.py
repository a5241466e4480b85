"""Our methods against stored outputs of their published code.

`python -m tests.methods.golden` prints how many cases pass. A new folder is one line in CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import methods
from tests.methods import (
    golden_budgets,
    golden_decode,
    golden_heads,
    golden_layers,
    golden_merging,
    golden_recall,
    golden_scorers,
)
from tests.methods.golden_data import (
    POOLS,
    ROOT,
    Case,
    cases,
    check_scored,
    expect,
    expect_close,
    output,
    view,
)

__all__ = ["CHECKS", "ROOT", "all_cases", "cases", "needs_official"]

TEMPORAL = {"none": "last", "mean": "mean", "ema": "ema", "inv-ema": "ema_reversed"}


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
    if case["variant"] == "official":
        golden_decode.check_h2o(case)
        return
    params, how = case["params"], case["gqa_score_agg"]
    causal, window = case["variant"] == "kvcf", params["window_size"]
    policy = methods.build("h2o", recent=window, causal=causal, group=how or "mean")
    layer = view(case["inputs"], per_query_head=how is None)
    check_scored("h2o", case, policy, layer, window)


def check_tova(case: Case) -> None:
    check = check_tova_model if case["kind"] == "e2e" else golden_decode.check_tova
    check(case)


def check_tova_model(case: Case) -> None:
    """Sets after the prefill of a small model, from keys and queries its own forward computes."""
    from tests.methods.tiny_llama import layer_views

    policy = methods.build("tova")
    theirs = output("tova", case, "kept_pos")[0]
    for layer in layer_views(output("tova", case, "prompt_ids").long()):
        kept = policy.keep(layer, case["params"]["cache_size"])[0, 0]
        stored = theirs[layer.layer]
        expect(torch.equal(kept, stored[stored >= 0].long()), f"layer {layer.layer} differs")


CHECKS: dict[str, Callable[[Case], None]] = {
    "restkv": check_restkv,
    "ablation": check_ablation,
    "snapkv": check_snapkv,
    "h2o": check_h2o,
    "tova": check_tova,
    "streaming": golden_decode.check_streaming,
    "lacache": golden_decode.check_lacache,
    "adakv": golden_budgets.check_adakv,
    "pyramidkv": golden_budgets.check_pyramidkv,
    "chunkkv": golden_scorers.check_chunkkv,
    "knorm": golden_scorers.check_knorm,
    "expected_attention": golden_scorers.check_expected_attention,
    "lagkv": golden_scorers.check_lagkv,
    "post_vision": golden_scorers.check_post_vision,
    "cake": golden_layers.check_cake,
    "look_m": golden_merging.check_look_m,
    "mixkv": golden_scorers.check_mixkv,
    "rkv": golden_recall.check_rkv,
    "infinipot_v": golden_scorers.check_infinipot_v,
    "finch": golden_scorers.check_finch,
    "kvzip": golden_layers.check_kvzip,
    "qfilters": golden_layers.check_qfilters,
    "headkv": golden_heads.check_headkv,
}


def all_cases() -> Iterator[tuple[str, Case]]:
    for folder in CHECKS:
        for case in cases(folder):
            yield folder, case


def main() -> None:
    """Print how many stored cases pass, for each method."""
    total = passed = 0
    for folder in CHECKS:
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
