"""Evictions every few tokens of an answer, and R-KV, which recalls keys and queries for them."""

from __future__ import annotations

from itertools import pairwise

import masked_oracle as oracle
import pytest
from engine_helpers import stop_some
from test_holding import TOKENS, build, close, run_traced
from test_sharing import questions
from tiny_models import PROTOCOLS, make_prompt

import harness
import methods
from harness.engine import Branch, Engine, Generation, compacted, sharing
from tests.methods.by_hand import redundancy_aware

BUFFERED = {
    "h2o": ("h2o", {"buffer": 3}),
    "tova": ("tova", {"buffer": 4, "budget": "global"}),
    "lacache": ("lacache", {"span": 1, "start": 2, "buffer": 4}),
    "boundary": ("h2o", {"buffer": 3, "protect": "boundary", "boundary_share": 0.2}),
    "rkv": ("rkv", {"window": 3, "kernel": 3, "buffer": 4, "mix": 0.6}),
    "rkv_pyramid": ("rkv", {"window": 4, "buffer": 2, "budget": "pyramid", "threshold": 0.1}),
    "rkv_global": ("rkv", {"window": 2, "decode": "hold", "budget": "global", "official": True}),
}


def buffered(variant):
    name, params = BUFFERED[variant]
    return methods.build(name, **{"decode": "buffer", **params})


def every(budgets=(6, 17)):
    """Cells of all these methods among some that hold and grow."""
    policies = [*map(buffered, BUFFERED), build("h2o"), build("tova"), build("restkv")]
    return [Branch(), *(Branch(policy, budget=n) for policy in policies for n in budgets)]


@pytest.mark.parametrize(
    ("kind", "protocol"), [("llama", "replay"), ("llava", "context"), ("qwen", "paper")]
)
def test_each_step_sees_what_the_policy_left(loaded_models, kind, protocol, monkeypatch):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=61)
    engine, branches = Engine(loaded, PROTOCOLS[protocol]), every()
    boundary = engine.boundary(prompt)
    trace, results, logits, row = run_traced(monkeypatch, engine, prompt, branches, 14)
    length = prompt.modality.shape[0] + 14 - 1
    for cell, result in enumerate(results):
        masks = trace.masks(row[cell], boundary, length)
        wanted = oracle.logits(loaded.model, prompt, result.token_ids, masks, boundary)
        close(logits[:, cell], wanted[-logits.shape[0] :])


@pytest.mark.parametrize("variant", ["h2o", "tova", "lacache", "rkv"])
@pytest.mark.parametrize("protocol", ["replay", "context"])
def test_a_full_buffer_is_evicted_back_to_the_budget(loaded_models, variant, protocol, monkeypatch):
    """A cell that lost nothing of its prompt finds a token gone as late as its result says."""
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=43)
    engine, tokens, policy = Engine(loaded, PROTOCOLS[protocol]), 25, buffered(variant)
    boundary = engine.boundary(prompt)
    tail = prompt.modality.shape[0] - boundary
    budgets = (boundary // 2, boundary + 3)
    branches = [Branch(policy, budget=n) for n in budgets] + [Branch(build("tova"), budget=8)]
    trace, results, _, row = run_traced(monkeypatch, engine, prompt, branches, tokens)
    extra = tail if protocol == "context" else 0
    for cell, budget in enumerate(budgets):
        size, evictions, seen, whole = min(budget, boundary), 0, boundary, 0
        for held, new in trace.passes:
            heads = [places for cells in held.values() for places in cells[row[cell]]]
            found = sum(map(len, heads)) / len(heads)
            if variant == "lacache":  # whole blocks shrink
                assert size - 2 * len(held) <= found <= size
                size = int(found)
            assert found == size
            whole += found == seen
            size, seen = size + new, seen + new
            if size >= budget + extra + policy.period:
                size, evictions = budget + extra, evictions + 1
        assert evictions >= 2
        assert results[cell].exposed_tokens == tokens - (whole if cell else 0)


@pytest.mark.parametrize("kind", ["llama", "qwen"])
@pytest.mark.parametrize("variant", ["rkv", "rkv_each"])
def test_what_goes_is_what_the_models_own_keys_and_queries_say(
    loaded_models, kind, variant, monkeypatch
):
    """Keys and queries of the masked full model, scored by hand, give the same evictions."""
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=62)
    engine, budget, tokens = Engine(loaded), 9, 20
    given = BUFFERED["rkv"][1] | ({"decode": "hold", "buffer": 128} if variant != "rkv" else {})
    policy = methods.build("rkv", **given)
    boundary = engine.boundary(prompt)
    branches = [Branch(), Branch(policy, budget=budget), Branch(build("tova"), budget=7)]
    trace, results, _, row = run_traced(monkeypatch, engine, prompt, branches, tokens)
    masks = trace.masks(row[1], boundary, prompt.modality.shape[0] + tokens - 1)
    oracle.logits(loaded.model, prompt, results[1].token_ids, masks, boundary)
    evictions, how = 0, (policy.mix, policy.threshold, policy.kernel)
    for layer in engine.layout.layers:
        queries, keys = (each.double() for each in oracle.states[layer.index])
        group, seen = len(queries) // len(keys), boundary
        for (before, new), (after, _) in pairwise(trace.passes):
            seen += new
            readers = list(range(seen - policy.window, seen))
            for head, held in enumerate(before[layer.index][row[1]]):
                own = sorted([*held, *range(seen - new, seen)])
                left = sorted(after[layer.index][row[1]][head])
                if len(own) < budget + policy.period:
                    assert left == own
                    continue
                evictions += 1
                past = sum(place < seen - policy.window for place in own)
                rows = queries[head * group : (head + 1) * group, readers].tolist()
                states = keys[head, own].tolist(), rows, own, readers
                scores = redundancy_aware(*states, past, *how)
                lowest = sorted(range(past), key=scores.__getitem__)[: len(own) - budget]
                assert left == [place for i, place in enumerate(own) if i not in lowest]
    assert evictions >= 16


@pytest.mark.parametrize("variant", BUFFERED)
def test_generate_inside_evict_buffers_as_the_engine_does(loaded_models, variant):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=63)
    policy = buffered(variant)
    wanted = Engine(loaded).run(prompt, [Branch(policy, ratio=0.6)], Generation(14))[0]
    with harness.evict(loaded.model, policy, ratio=0.6):
        inputs = {name: value.clone() for name, value in prompt.inputs.items()}
        found = loaded.model.generate(
            **inputs, max_new_tokens=14, do_sample=False, eos_token_id=None
        )
    assert found[0, prompt.modality.shape[0] :].tolist() == wanted.token_ids


def test_layers_together_and_cells_that_finish_change_nothing(loaded_models, monkeypatch):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=64)
    found = []
    for together in (8, 1):
        with monkeypatch.context() as patch:
            patch.setattr(compacted, "TOGETHER", together)
            found.append(run_traced(patch, Engine(loaded), prompt, every(), TOKENS)[0].passes)
    assert found[0] == found[1]
    assert len(stop_some(monkeypatch, Engine(loaded), prompt, every(), every=2)) > 2


def test_the_next_question_recalls_the_context_and_not_the_last_question(
    loaded_models, monkeypatch
):
    """A window longer than the question, so that queries of the shared context count."""
    monkeypatch.setattr(sharing, "LEAST", 8)
    loaded, policy = loaded_models["llava"], methods.build("rkv", window=20, buffer=2, mix=0.9)
    engine = Engine(loaded, PROTOCOLS["context"])
    branches = [Branch(policy, budget=n) for n in (6, 9)]
    for number, prompt in enumerate(questions("llava", 3)):
        shared = engine.run(prompt, branches, Generation(12))
        assert (shared[0].timings["prefill"] == 0) == (number > 0)
        alone = Engine(loaded, PROTOCOLS["context"]).run(prompt, branches, Generation(12))
        for one, other in zip(shared, alone, strict=True):
            assert one.token_ids == other.token_ids
            assert one.letter_logits == other.letter_logits


def test_packed_entries_cannot_go_by_a_buffer():
    from harness.settings.caches import Quantized

    with pytest.raises(ValueError, match="none of which can go by itself"):
        Branch(buffered("h2o"), ratio=0.5, cache=Quantized())
    assert Branch(methods.build("rkv", decode="grow"), ratio=0.5, cache=Quantized()).cache
