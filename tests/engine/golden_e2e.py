"""The engine against whole runs of published code on one small Llama: sets, logits and answers.

`python -m tests.engine.golden_e2e` prints how many stored cases pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import methods
from harness.engine import Branch, Engine, Generation, Protocol
from harness.models.loaded import LoadedModel
from harness.models.prompts import Prompt
from methods import ladder
from methods.budgets import pyramid
from tests.engine.engine_helpers import Trace
from tests.engine.golden_policies import (
    Released,
    at_ranks,
    of_press,
    scores_of,
    shared_by_heads,
    with_counts,
)
from tests.engine.tiny_models import make_tokenizer
from tests.methods.golden_data import Case, cases, expect, expect_close, output
from tests.methods.tiny_llama import build, layer_views

KVPRESS, LACACHE, TOVA = "kvpress_e2e", "lacache_e2e", "tova"
CLOSE = 1e-4  # largest difference of logits, which lie between -7 and 7


class Run(NamedTuple):
    """ids: the answer. logits [tokens, V]: row i chose token i.

    held: before each pass of the decoder, layers x heads x ascending positions.
    """

    ids: list[int]
    logits: Tensor
    held: list[list[list[list[int]]]]


@cache
def tiny_llama() -> LoadedModel:
    model = build("sdpa")
    loaded = LoadedModel(
        model, None, make_tokenizer(), "tiny", torch.device("cpu"), torch.float32, "", False
    )
    loaded.__dict__["stop_ids"] = frozenset()
    return loaded


def run(
    protocol: str, branch: Branch, prompt: Tensor, tokens: int, question: Tensor | None = None
) -> Run:
    """Answer a prompt [L], or a question after it, with one token more than is looked at.

    The last pass evicts nothing, so the pass of the token behind the answer shows what it left.
    """
    engine = Engine(tiny_llama(), Protocol(protocol))
    ids = prompt if question is None else torch.cat([prompt, question])
    whole = Prompt({"input_ids": ids[None].long()}, torch.zeros(len(ids)).long(), 0, len(prompt))
    engine.check(whole)  # whose passes are not the run's
    logits: list[Tensor] = []

    def note(_module: object, _inputs: object, output: Tensor) -> None:
        logits.append(output[0, -1].clone())

    hook = engine.model.lm_head.register_forward_hook(note)
    try:
        with pytest.MonkeyPatch.context() as patch:
            trace = Trace(patch)
            result = engine.run(whole, [branch], Generation(tokens + 1))[0]
    finally:
        hook.remove()
    first = 0 if question is None else 1  # what follows the prompt alone is a question, not a token
    held = [
        [[sorted(places) for places in layers[index][0]] for index in sorted(layers)]
        for layers, _ in trace.passes
    ]
    return Run(result.token_ids[:tokens], torch.stack(logits[first : first + tokens]), held)


def expect_answer(folder: str, case: Case, found: Run, suffix: str = "") -> None:
    """The same tokens from the same logits."""
    ids, logits = (output(folder, case, name + suffix) for name in ("generated_ids", "logits"))
    expect(found.ids == ids.tolist(), f"answers {found.ids}, not {ids.tolist()}")
    worst = float((found.logits - logits).abs().max())
    expect(worst <= CLOSE, f"logits differ by {worst:.1e}")


def check_kvpress(case: Case) -> None:
    """Scores, kept sets, logits and the answer.

    kvpress gives re-rotated keys the places 0 to n - 1 and lets the question start at the prompt's
    length; stored besides is the run in which it starts at n (`compact`), which is ours.
    """
    if case.get("kind") == "budget":
        check_kvpress_pyramid(case)
        return
    prompt, question = (output(KVPRESS, case, name) for name in ("prompt_ids", "question_ids"))
    press, suffix, branch = case["press"], "", Branch()
    if press is not None:
        policy = of_press(case)
        counts = case.get("n_kept_per_layer") or [case["n_kept_mean"]]
        check_press_scores(case, policy, counts)
        asked = counts[0]
        if press == "PyramidKV":
            policy = with_counts(policy, counts)
        elif press.startswith("AdaKV"):
            policy = shared_by_heads(policy, case["press_kwargs"]["alpha"])
        elif press.startswith("Rerot"):
            policy, suffix = at_ranks(policy), "_compact"
        branch = Branch(policy, budget=asked)
    found = run("context", branch, prompt, case["new_tokens"], question)
    for layer, heads in enumerate(found.held[0]):
        for head, kept in enumerate(heads):
            theirs = kept_by_press(case, layer, head)
            expect(kept == theirs, f"layer {layer}, head {head} keeps {kept}, not {theirs}")
    expect_answer(KVPRESS, case, found, suffix)


def kept_by_press(case: Case, layer: int, head: int) -> list[int]:
    mask, index = output(KVPRESS, case, "keep_mask"), output(KVPRESS, case, "idx")
    if case["press"] is None:
        return list(range(case["prompt_len"]))
    if mask is not None:
        return mask[layer, head].nonzero()[:, 0].tolist()
    return sorted(place for place in index[layer, head].tolist() if place >= 0)


def check_press_scores(case: Case, policy: methods.Policy, counts: list[int]) -> None:
    """The scores that were ranked; what is protected lies above all others there.

    SnapKV's are means over the window, ours sums. StreamingLLM's say 1 or 0, ours the position.
    """
    stored, prompt = output(KVPRESS, case, "score"), output(KVPRESS, case, "prompt_ids").long()
    rows = case["press_kwargs"].get("window_size", 1)
    for layer, view in enumerate(layer_views(prompt)):
        theirs = stored[layer]
        if policy.name == "streaming_llm":
            kept = torch.zeros_like(theirs)
            kept.scatter_(1, policy.keep(view, counts[layer])[0], 1.0)
            expect(torch.equal(kept, theirs), f"layer {layer} ranks others")
            continue
        scores = scores_of(policy, view, counts[min(layer, len(counts) - 1)])
        free = ~scores.isinf()
        if not free.all():
            above = theirs[~free].min() > theirs[free].max()
            expect(above, f"layer {layer} protects others")
        expect_close(scores[free] / rows, theirs[free], f"scores of layer {layer}")


def check_kvpress_pyramid(case: Case) -> None:
    """The line of budgets, and that its total is the budget.

    Comparable: a budget n of L tokens and the line through it, which ours keeps to with an exact
    total while kvpress rounds each layer by itself. Not comparable: kvpress counts the protected
    window into the line where ours is added to every layer (as in the authors' own code), and keeps
    n on every layer where the last one would get less than the window; ours knows no such limit.
    """
    length, layers, settings = case["L"], case["num_hidden_layers"], case["press_kwargs"]
    window, count = settings["window_size"], methods.budget(length, case["compression_ratio"])
    stored = output(KVPRESS, case, "out_len_per_layer").tolist()
    line = pyramid(count, length - window, layers, settings["beta"], length)
    expect(sum(line) == count * layers, f"keeps {sum(line)} tokens in all")
    if line[-1] < window:
        expect(stored == [count] * layers, f"layers keep {stored}, not {count} each")
        return
    near = all(abs(ours - theirs) <= 1 for ours, theirs in zip(line, stored, strict=True))
    expect(near, f"layers keep {line}, not {stored}")
    expect(abs(sum(stored) - sum(line)) < layers / 2, f"keeps {sum(line)}, not {sum(stored)}")


# TOVA and LaCache: the whole prompt is read, then the cache is evicted after every token.


def expect_held(folder: str, case: Case, found: Run) -> None:
    """The same positions after the prompt and after every token, on all heads of every layer."""
    stored = output(folder, case, "kept_pos").tolist()
    expect(len(found.held) == len(stored), f"{len(found.held)} steps, stored {len(stored)}")
    for step, (layers, wanted) in enumerate(zip(found.held, stored, strict=True)):
        for layer, (heads, row) in enumerate(zip(layers, wanted, strict=True)):
            theirs = [place for place in row if place >= 0]
            for kept in heads:
                what = f"layer {layer} after step {step} keeps {kept}, not {theirs}"
                expect(kept == theirs, what)


def check_tova(case: Case) -> None:
    params = case["params"]
    branch = Branch(methods.build("tova"), budget=params["cache_size"])
    found = run("paper", branch, output(TOVA, case, "prompt_ids"), params["new_tokens"])
    expect_held(TOVA, case, found)
    expect_answer(TOVA, case, found)


def check_lacache(case: Case) -> None:
    """Every step: what is kept, the rotary position of the query, and the logits.

    Where the capacity was raised, ours keeps other sets (see `Released`): beside those of the
    prompt, which differ by what comes back, the run is checked with the released code's own.
    """
    params, capacity = case["params"], case["cache_size_after_compensation"]
    shape = {"span": params["span"], "overlap": params["overlap"], "start": params["start_size"]}
    policy = methods.build("lacache", **shape, positions="cache")
    prompt, tokens = output(LACACHE, case, "prompt_ids"), params["new_tokens"]
    theirs = Branch(released(case, shape), budget=kept_first(case))
    expect_released(case, run("paper", theirs, prompt, tokens))
    found = run("paper", Branch(policy, budget=capacity), prompt, tokens)
    if kept_first(case) == capacity:
        expect_released(case, found)
        return
    stored = output(LACACHE, case, "kept_pos")[0]
    for layer, (heads, row) in enumerate(zip(found.held[0], stored.tolist(), strict=True)):
        theirs = [place for place in row if place >= 0]
        gone = sorted(set(range(len(prompt))) - set(theirs))
        back = sorted(theirs + gone[len(theirs) - capacity :])
        for kept in heads:
            expect(kept == back, f"layer {layer} keeps {kept} of the prompt, not {back}")


def kept_first(case: Case) -> int:
    """Entries that the released code kept of the prompt."""
    return int((output(LACACHE, case, "kept_pos")[0, 0] >= 0).sum())


def released(case: Case, shape: dict[str, int]) -> Released:
    layers = tiny_llama().model.config.num_hidden_layers
    rungs = ladder.build(layers, **shape)
    capacity, length = case["cache_size_after_compensation"], case["params"]["prompt_len"]
    return Released(climb=ladder.Climb(rungs, 0, 0, capacity, length))


def expect_released(case: Case, found: Run) -> None:
    expect_held(LACACHE, case, found)
    ranks = output(LACACHE, case, "query_pos").tolist()
    expect(ranks[0] == case["params"]["prompt_len"] - 1, "the prompt was read at other positions")
    expect([len(held[0][0]) for held in found.held[:-1]] == ranks[1:], "queries sit elsewhere")
    expect_answer(LACACHE, case, found)


CHECKS: dict[str, Callable[[Case], None]] = {
    KVPRESS: check_kvpress,
    LACACHE: check_lacache,
    TOVA: check_tova,
}


def whole_runs(folder: str) -> list[Case]:
    """The stored cases of a folder that ran a model."""
    return [case for case in cases(folder) if folder != TOVA or case["kind"] == "e2e"]


def main() -> None:
    """Print how many stored cases pass."""
    for folder, check in CHECKS.items():
        failures = []
        for case in whole_runs(folder):
            try:
                check(case)
            except AssertionError as error:
                failures.append(f"    {case['id']}: {error}")
        total = len(whole_runs(folder))
        print(f"{folder}: {total - len(failures)} of {total}", *failures, sep="\n")


if __name__ == "__main__":
    main()
