"""Decoding under a budget against the full model, masked at each step to what was left."""

from __future__ import annotations

from itertools import pairwise

import masked_oracle as oracle
import pytest
import torch
from engine_helpers import Trace, run_with_logits, stop_some
from tiny_models import CASES, KINDS, PROTOCOLS, make_prompt, random_ids, text, wrap
from transformers import (
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
)

import harness
import methods
from harness.engine import Branch, Engine, Generation, Protocol, compacted
from harness.engine import cache as cache_module
from harness.engine.hold import Part
from harness.engine.holder import Holder
from harness.models.prompts import Prompt

TOKENS = 9
#: The large ones, with the protocols that other kinds take.
REPEATED = {(kind, name) for kind in ("qwen", "gemma") for name in PROTOCOLS} - {
    ("qwen", "paper"),
    ("gemma", "context"),
}
HOLDING = {
    "h2o": ("h2o", {}),
    "h2o_visible": ("h2o", {"average": "visible_mean", "recent": 2, "group": "max"}),
    "tova": ("tova", {}),
    "tova_last": ("tova", {"protect_last": True}),
    "streaming": ("streaming_llm", {"sinks": 2}),
    "lacache": ("lacache", {"span": 1, "start": 2}),
    "random": ("random", {"decode": "hold"}),
    "pyramid": ("h2o", {"budget": "pyramid"}),
    "adaptive": ("h2o", {"budget": "adaptive", "recent": 2}),
    "boundary": ("tova", {"protect": "boundary", "boundary_share": 0.25}),
    "global": ("h2o", {"budget": "global", "recent": 2}),
    "global_tova": ("tova", {"budget": "global"}),
}
GROWING = {
    "restkv": ("restkv", {"window": 8, "budget": "adaptive"}),
    "snapkv": ("snapkv", {"window": 6, "budget": "pyramid"}),
    "grown": ("h2o", {"decode": "grow"}),
}


def build(variant):
    name, params = {**HOLDING, **GROWING}[variant]
    return methods.build(name, **params)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)


def run_traced(monkeypatch, engine, prompt, branches, tokens=TOKENS):
    trace = Trace(monkeypatch)
    results, logits = run_with_logits(monkeypatch, engine, prompt, branches, tokens)
    asked = [engine_count(branch, results[0].evictable_tokens) for branch in branches]
    order = sorted(range(len(branches)), key=lambda i: -asked[i])
    return trace, results, logits, {cell: row for row, cell in enumerate(order)}


def engine_count(branch, length):
    if branch.policy is None:
        return length
    wanted = branch.budget or methods.budget(length, branch.ratio)
    return min(wanted, length)


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case in REPEATED)) for case in CASES],
)
def test_each_step_sees_what_the_policy_left(loaded_models, kind, protocol, monkeypatch):
    """All methods in one batch; at every step the masked model loses what they evicted."""
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=41)
    engine = Engine(loaded, PROTOCOLS[protocol])
    boundary = engine.boundary(prompt)
    variants = [*HOLDING, *GROWING]
    branches = [Branch()] + [
        Branch(build(variant), budget=n) for variant in variants for n in (6, boundary // 2)
    ]
    trace, results, logits, row = run_traced(monkeypatch, engine, prompt, branches)
    length = prompt.modality.shape[0] + TOKENS - 1
    changed = 0
    for cell, result in enumerate(results):
        masks = trace.masks(row[cell], boundary, length)
        wanted = oracle.logits(loaded.model, prompt, result.token_ids, masks, boundary)
        close(logits[:, cell], wanted[-logits.shape[0] :])
        whole = oracle.logits(loaded.model, prompt, result.token_ids)
        changed += not torch.allclose(wanted, whole, rtol=1e-3, atol=1e-3)
    assert changed >= 12  # the test would be empty if eviction did not matter


def evicted_by_hand(name, weights, boundary, budget):
    """What [Hkv] heads hold before each pass, from attention weights [Hkv, length, length]."""
    courses = []
    for rows in weights:
        length = len(rows)
        paid = rows[:boundary].sum(0) if name == "h2o" else rows[boundary - 1].clone()
        held, course = list(range(boundary)), []
        for token in range(boundary, length):
            if token > boundary:
                held.append(token - 1)
                paid = paid + rows[token - 1] if name == "h2o" else rows[token - 1]
            recent = max(held) - budget // 2 if name == "h2o" else max(held)
            while len(held) > budget:
                held.remove(min((p for p in held if p <= recent), key=lambda p: float(paid[p])))
            course.append(sorted(held))
        courses.append(course)
    return courses


@pytest.mark.parametrize("kind", [*KINDS, "short"])
@pytest.mark.parametrize("name", ["h2o", "tova"])
def test_what_goes_is_what_the_models_own_attention_says(loaded_models, kind, name, monkeypatch):
    """Sums and rows of the masked full model, added up by hand, give the same evictions."""
    loaded, budget, tokens = loaded_models["llama" if kind == "short" else kind], 8, 30
    prompt = make_prompt("llama" if kind == "short" else kind, seed=53)
    if kind == "short":  # so that what new tokens pay outweighs what the prompt paid
        prompt = Prompt({"input_ids": random_ids(10, 7)}, prompt.modality[:10], 0, None)
    engine = Engine(loaded)
    boundary = engine.boundary(prompt)
    branches = [Branch(), Branch(methods.build(name), budget=budget)]
    trace, results, _, row = run_traced(monkeypatch, engine, prompt, branches, tokens)
    masks = trace.masks(row[1], boundary, prompt.modality.shape[0] + tokens - 1)
    oracle.logits(loaded.model, prompt, results[1].token_ids, masks, boundary)
    for layer in engine.layout.layers:
        weights = oracle.seen[layer.index]
        groups = weights.unflatten(0, (2, -1)).mean(1)  # [Hkv, length, length]
        if name == "tova":
            groups = weights.mean(0, keepdim=True).expand(2, -1, -1)
        wanted = evicted_by_hand(name, groups, boundary, budget)
        for head in range(2):
            found = [sorted(held[layer.index][row[1]][head]) for held, _ in trace.passes]
            assert found == wanted[head]


@pytest.mark.parametrize("protocol", ["context", "suffix"])
def test_long_questions_go_by_in_blocks(loaded_models, protocol, monkeypatch):
    """Few rows at a time give what all rows at once give, to policies that observe them too."""
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=54)
    cells = [Branch(build(v), budget=n) for v in (*HOLDING, "restkv") for n in (5, 12)]
    cells += [Branch(methods.build("streaming_llm", positions="cache"), budget=9)]
    engine = Engine(loaded, PROTOCOLS[protocol])
    whole = engine.run(prompt, cells, Generation(TOKENS), "AB")
    monkeypatch.setattr(cache_module, "_ROWS", 6)  # two tokens of three query heads
    split = engine.run(prompt, cells, Generation(TOKENS), "AB")
    for one, other in zip(whole, split, strict=True):
        assert one.token_ids == other.token_ids
        assert one.letter_logits == pytest.approx(other.letter_logits, abs=1e-4)


@pytest.mark.parametrize("variant", HOLDING)
@pytest.mark.parametrize("protocol", ["replay", "context", "paper"])
def test_the_budget_is_held_after_every_step(loaded_models, variant, protocol, monkeypatch):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=43)
    engine, tokens = Engine(loaded, PROTOCOLS[protocol]), 25
    boundary = engine.boundary(prompt)
    tail = prompt.modality.shape[0] - boundary
    budget = boundary // 2
    trace, _, _, _ = run_traced(
        monkeypatch, engine, prompt, [Branch(build(variant), budget=budget)], tokens
    )
    extra = tail if protocol == "context" else 0
    layers = len(engine.layout.layers)
    for step, (held, _) in enumerate(trace.passes):
        sizes = [len(places) for cells in held.values() for places in cells[0]]
        expected = budget + (extra if step else 0)
        if variant == "lacache":
            assert max(sizes) <= expected
            assert min(sizes) > expected - layers * 2
        else:
            assert sum(sizes) == expected * len(sizes)


@pytest.mark.parametrize("variant", GROWING)
def test_growing_methods_grow_by_one_each_step(loaded_models, variant, monkeypatch):
    loaded, prompt = loaded_models["qwen"], make_prompt("qwen", seed=44)
    branches = [Branch(build(variant), budget=12)]
    trace, _, _, _ = run_traced(monkeypatch, Engine(loaded), prompt, branches)
    sizes = [sum(len(p) for cells in held.values() for p in cells[0]) for held, _ in trace.passes]
    heads = sum(len(cells[0]) for cells in trace.passes[0][0].values())
    assert [b - a for a, b in pairwise(sizes)] == [heads] * (len(sizes) - 1)


def test_a_budget_above_the_prompt_is_held_once_it_is_full(loaded_models, monkeypatch):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=45)  # 36 of 37 in the cache
    branches = [Branch(build("tova"), budget=40), Branch(build("tova"), ratio=0.0)]
    trace, results, _, row = run_traced(monkeypatch, Engine(loaded), prompt, branches, 12)
    held = [[len(layers[0][row[cell]][0]) for layers, _ in trace.passes] for cell in (0, 1)]
    assert held[0] == [36, 37, 38, 39, 40, *[40] * 7]
    assert held[1] == list(range(36, 48))
    # The sixth pass is the first to find a token gone.
    assert [result.exposed_tokens for result in results] == [12 - 5, 0]


@pytest.mark.parametrize(("budget", "exposed"), [(37, 8), (38, 7), (60, 0)])
def test_tokens_are_exposed_from_the_first_eviction_on(loaded_models, budget, exposed):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=46)
    branch = Branch(build("h2o"), budget=budget)
    result = Engine(loaded, Protocol("paper")).run(prompt, [branch], Generation(10))[0]
    assert result.kept_tokens == result.evictable_tokens == 37
    assert result.exposed_tokens == exposed


@pytest.mark.parametrize("kind", KINDS)
def test_a_holding_cell_alone_equals_the_cell_among_thirty(loaded_models, kind, monkeypatch):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=47)
    engine = Engine(loaded)
    policies = [build(variant) for variant in (*HOLDING, *GROWING)]
    branches = [Branch(p, ratio=r) for p in policies for r in (0.3, 0.6, 0.85)]
    together, logits = run_with_logits(monkeypatch, engine, prompt, branches, TOKENS)
    assert len(branches) > 30
    for cell in range(1, len(branches), 3):
        alone, single = run_with_logits(monkeypatch, engine, prompt, [branches[cell]], TOKENS)
        close(single[:, 0], logits[:, cell])
        assert alone[0].token_ids == together[cell].token_ids


@pytest.mark.parametrize("variant", [*HOLDING, *GROWING])
@pytest.mark.parametrize("protocol", ["replay", "paper"])
def test_generate_inside_evict_holds_as_the_engine_does(loaded_models, variant, protocol):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=48)
    policy = build(variant)
    if policy.waits and protocol == "paper":
        return  # refused, see test_global
    branch = Branch(policy, ratio=0.6)
    wanted = Engine(loaded, Protocol(protocol)).run(prompt, [branch], Generation(TOKENS))[0]
    with harness.evict(loaded.model, policy, ratio=0.6, protocol=protocol):
        inputs = {name: value.clone() for name, value in prompt.inputs.items()}
        found = loaded.model.generate(
            **inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )
    assert found[0, prompt.modality.shape[0] :].tolist() == wanted.token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_layers_together_evict_what_each_evicts_alone(loaded_models, kind, monkeypatch):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=55)
    branches = [Branch(build(v), budget=n) for v in (*HOLDING, "restkv") for n in (5, 12)]
    found = []
    for together in (8, 2, 1):
        with monkeypatch.context() as patch:
            patch.setattr(compacted, "TOGETHER", together)
            found.append(run_traced(patch, Engine(loaded), prompt, branches)[0].passes)
    assert len(found[0]) == TOKENS
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("variant", ["h2o", "tova", "streaming", "random"])
def test_layers_that_share_keys_see_what_is_left(variant, monkeypatch):
    """A shared layer looks behind its donor, which evicts at once inside `harness.evict`."""
    torch.manual_seed(0)
    config = Gemma3nTextConfig(
        **text(num_hidden_layers=4, layer_types=["full_attention"] * 4),
        head_dim=16, vocab_size_per_layer_input=text()["vocab_size"], num_kv_shared_layers=2,
        hidden_size_per_layer_input=8, laurel_rank=4, activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    loaded, prompt = wrap(Gemma3nForCausalLM(config)), make_prompt("llama", seed=56)
    branches = [Branch(build(variant), budget=6)]
    _, logits = run_with_logits(monkeypatch, Engine(loaded), prompt, branches, TOKENS)
    with harness.evict(loaded.model, build(variant), budget=6):
        found = loaded.model.generate(
            **prompt.inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    close(logits[:-1, 0], torch.stack(found.logits)[:-1, 0])  # the last pass evicts nothing


def test_finished_cells_take_their_holders_along(loaded_models, monkeypatch):
    """Cells leave the batch at different steps; those that go on are not disturbed."""
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=49)
    branches = [Branch(build(v), ratio=r) for v in HOLDING for r in (0.4, 0.7)]
    lengths = stop_some(monkeypatch, Engine(loaded), prompt, branches, every=2)
    assert len(lengths) > 2


@pytest.mark.parametrize("name", ["h2o", "tova", "random"])
@pytest.mark.parametrize("budget", [22, 26, 4])
def test_protected_text_of_the_prompt_outlives_all_images(loaded_models, name, budget, monkeypatch):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=51)
    policy = methods.build(name, protect="text", decode="hold")
    branches = [Branch(policy, budget=budget)]
    trace, _, _, _ = run_traced(monkeypatch, Engine(loaded), prompt, branches, 24)
    image = prompt.modality.tolist()
    text = {place for place, kind in enumerate(image[:-1]) if not kind}
    sizes = set()
    for layers, _ in trace.passes:
        for head in (head for cells in layers.values() for head in cells[0]):
            assert text <= set(head)
            sizes.add(len(head))
    assert sizes == {max(budget, len(text))}
    last = [head for cells in trace.passes[-1][0].values() for head in cells[0]]
    assert any(len(image) < max(head) for head in last) or budget == 4  # answers stay as well


@pytest.mark.parametrize("name", ["h2o", "tova", "random"])
@pytest.mark.parametrize("rule", ["uniform", "pyramid", "adaptive"])
def test_both_ends_of_the_prompt_outlive_the_rest(loaded_models, name, rule, monkeypatch):
    """In one batch with other budgets; each layer has its own share of its own budget."""
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=51)
    shape = {"decode": "hold", "budget": rule, "protect": "boundary", "boundary_share": 0.2}
    policy, engine = methods.build(name, **shape), Engine(loaded)
    branches = [Branch(policy, budget=budget) for budget in (20, 13, 5)]
    trace, _, _, row = run_traced(monkeypatch, engine, prompt, branches, 24)
    length = engine.boundary(prompt)
    for layer, cells in trace.passes[0][0].items():
        for cell in range(len(branches)):
            start = cells[row[cell]]
            ends = sum(map(len, start)) // len(start) // 5
            must = {*range(ends), *range(length - ends, length)}
            for layers, _ in trace.passes:
                for head, first in zip(layers[layer][row[cell]], start, strict=True):
                    assert must <= set(head)
                    assert len(head) == len(first)
            if max(map(len, start)) > 2 * ends:
                assert any(place > length for head in layers[layer][row[cell]] for place in head)


@pytest.mark.parametrize("name", ["h2o", "tova"])
def test_a_rule_says_nothing_where_some_is_spared_or_layers_compete(name, monkeypatch):
    def told(protect):
        held, policy = [methods.Held(41, 10, 10, 1)], methods.build(name, protect=protect)
        part = Part([Holder(policy, 0, 4, [0], held, [0])], 1, [0])
        return part.rule(torch.tensor([[10, 10]]), 42, torch.device("cpu")) is not None

    assert [told(protect) for protect in ("none", "text", "boundary")] == [True, False, False]
    monkeypatch.setattr(methods.Policy, "competes", True)
    assert not told("none")


def test_layers_that_attend_twice_an_update_are_refused():
    torch.manual_seed(0)
    config = DiffLlamaConfig(**text(num_attention_heads=4, num_key_value_heads=2))
    loaded, prompt = wrap(DiffLlamaForCausalLM(config)), make_prompt("llama", seed=52)
    with pytest.raises(ValueError, match="exactly once for each update"):
        Engine(loaded).run(prompt, [Branch()], Generation(2))
