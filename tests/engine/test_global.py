"""budget=global and layers in the engine: selections that wait for all layers, against a loop."""

from __future__ import annotations

import pytest
import torch
from engine_helpers import Scatter, Trace
from tiny_models import CASES, KINDS, PROTOCOLS, make_prompt

import harness
import methods
from harness.engine import Branch, Engine, Generation
from harness.engine.capture import Capture
from harness.models.precision import rerun
from tests.methods.test_global import by_hand

SCORERS = [
    ("snapkv", {"window": 4}),
    ("h2o", {"recent": 3}),
    ("tova", {}),
    ("random", {}),
    ("restkv", {"window": 4, "normalize": True}),
    ("snapkv", {"window": 4, "protect": "text"}),
    ("h2o", {"protect": "boundary"}),
]


def first_kept(monkeypatch, engine, prompt, branches):
    """Positions [layer][head] that each cell holds when it begins to decode, and the results."""
    trace = Trace(monkeypatch)
    results = engine.run(prompt, branches, Generation(2))
    layers = trace.passes[0][0]
    cells = range(len(branches))
    return [
        [[sorted(head) for head in of[cell]] for of in layers.values()] for cell in cells
    ], results


@pytest.mark.parametrize(("kind", "protocol"), CASES)
def test_cells_hold_the_best_of_all_layers(loaded_models, kind, protocol, monkeypatch):
    """Scores come from the layers as another policy was shown them, one by one."""
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=61)
    engine, budget, uneven = Engine(loaded, PROTOCOLS[protocol]), 11, 0
    for name, params in SCORERS:
        if kind == "llama" and params.get("protect") == "text":
            continue  # all of it is text
        witness = Scatter(1, window=None)
        policy = methods.build(name, **params, budget="global")
        usual = methods.build(name, **params)
        branches = [Branch(policy, budget=budget), Branch(witness, budget=budget)]
        with monkeypatch.context() as patch:
            kept, results = first_kept(patch, engine, prompt, branches)
        alone = [usual.select_many(view, [budget])[0] for view in witness.views]
        count = alone[0].positions.shape[-1]
        scores = [usual.score(view, budget)[0].tolist() for view in witness.views]
        wanted = by_hand(scores, count * sum(map(len, scores)))
        assert kept[0] == wanted
        uneven += len({len(head) for layer in wanted for head in layer}) > 1
        assert results[0].kept_tokens == count
        if count == budget:
            assert results[0].cache_bytes == results[1].cache_bytes
        assert results[0].fallback == alone[0].fallback
    assert uneven >= 3  # the test would be empty if all heads kept as many


@pytest.mark.parametrize("kind", KINDS)
def test_layers_hold_what_they_asked_for(loaded_models, kind, monkeypatch):
    """Views come from another policy, to which every layer was shown by itself."""
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=66)
    witness = Scatter(1, window=None)
    policies = [methods.build("cake", window=4), methods.build("snapkv", window=4, budget="layers")]
    branches = [Branch(policy, budget=11) for policy in (*policies, witness)]
    kept, results = first_kept(monkeypatch, Engine(loaded), prompt, branches)
    for policy, of, result in zip(policies, kept, results, strict=False):
        chosen = policy.select_layers([policy.rate(view, [11]) for view in witness.views])
        wanted = [each.positions[0].tolist() for (each,) in chosen]
        assert of == [[[j for j in head if j >= 0] for head in layer] for layer in wanted]
        assert len({len(layer[0]) for layer in of}) > 1
        assert result.kept_tokens == 11


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", ["replay", "context"])
def test_generate_inside_evict_waits_for_all_layers(loaded_models, kind, protocol):
    if (kind, protocol) == ("llama", "context"):
        return  # no image, no context
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=62)
    engine = Engine(loaded, PROTOCOLS[protocol])
    rules = [*((name, params, "global") for name, params in SCORERS[:4])]
    for name, params, rule in [*rules, ("cake", {"window": 4}, "layers")]:
        policy = methods.build(name, **params, budget=rule)
        wanted = engine.run(prompt, [Branch(policy, ratio=0.6)], Generation(6))[0]
        with harness.evict(loaded.model, name, ratio=0.6, protocol=protocol, rule=rule, **params):
            inputs = {key: value.clone() for key, value in prompt.inputs.items()}
            found = loaded.model.generate(
                **inputs, max_new_tokens=6, do_sample=False, eos_token_id=None
            )
        assert found[0, prompt.modality.shape[0] :].tolist() == wanted.token_ids


def test_a_prompt_that_generate_reads_itself_is_refused_in_one_sentence(loaded_models):
    evict = harness.evict(
        loaded_models["llama"].model, "snapkv", ratio=0.5, rule="global", protocol="paper"
    )
    with pytest.raises(ValueError, match="use protocol=replay or context") as error, evict:
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["h2o", "tova", "random"])
def test_ends_of_the_budget_outlive_the_rest_on_every_layer(loaded_models, name, monkeypatch):
    """The share is one of the budget, whatever the layer got of it."""
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=63)
    shape = {"decode": "hold", "budget": "global", "protect": "boundary", "boundary_share": 0.25}
    policy, engine = methods.build(name, **shape), Engine(loaded)
    trace = Trace(monkeypatch)
    engine.run(prompt, [Branch(policy, budget=16)], Generation(20))
    length = engine.boundary(prompt)
    must = {*range(4), *range(length - 4, length)}
    for layer, cells in trace.passes[0][0].items():
        for layers, _ in trace.passes:
            for head, first in zip(layers[layer][0], cells[0], strict=True):
                assert must <= set(head)
                assert len(head) == len(first)


def test_scores_that_are_no_numbers_are_found(loaded_models):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=64)
    weight = loaded.model.get_submodule("model.layers.1.self_attn.k_proj").weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] = torch.nan
        evict = harness.evict(loaded.model, "snapkv", ratio=0.5, window=4, rule="global")
        with evict, pytest.raises(ValueError, match=rerun("float32")[:20]):
            loaded.model.generate(**prompt.inputs, max_new_tokens=2)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_who_waits_holds_no_queries(loaded_models, monkeypatch):
    """Also a policy that asks for numbers: an empty slice would hold the whole tensor."""
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=65)
    seen, finish = [], Capture.finish

    def look(capture, *given):
        seen.extend(each.view.queries.untyped_storage().nbytes() for each in capture._asked)
        finish(capture, *given)

    monkeypatch.setattr(Capture, "finish", look)
    for rule in ("uniform", "global"):
        policy = methods.build("random", budget=rule)
        Engine(loaded).run(prompt, [Branch(policy, budget=9)], Generation(1))
    layers = len(Engine(loaded).layout.layers)
    assert seen == [0] * 2 * layers
