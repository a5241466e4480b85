"""Methods that read hidden states: what enters attention, against transformers' own record."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from engine_helpers import Trace, random_gates
from tiny_models import CASES, PROTOCOLS, make_prompt

import harness
import methods
from harness.engine import Branch, Engine, Generation
from harness.engine.layout import prepare
from methods.gates import load


@pytest.fixture
def gates(tmp_path: Path):
    """Makes random gates for a model."""
    return partial(random_gates, folder=tmp_path, seed=5, size=0.3)  # no score saturates


def wanted(model, prompt, boundary: int, place: str, count: int) -> list[list[list[int]]]:
    """Kept positions [layer][head], from hidden states that a hook of its own sees at q_proj."""
    layers, seen = prepare(model).layers, {}

    def note(rank: int, module: torch.nn.Module, given: tuple[torch.Tensor], out: object) -> None:
        seen[rank] = given[0]  # what a hook returns would stand for the output

    hooks = [
        layer.module.q_proj.register_forward_hook(partial(note, layer.rank)) for layer in layers
    ]
    with torch.no_grad():
        model(**prompt.inputs)
    for hook in hooks:
        hook.remove()
    found = []
    for rank, gate in enumerate(load(place)):
        ages = boundary + 1 - torch.arange(boundary)
        scores = gate(seen[rank][:, :boundary])[0] * ages
        found.append([sorted(head.topk(count).indices.tolist()) for head in scores])
    return found


@pytest.mark.parametrize(("kind", "protocol"), CASES)
def test_cells_keep_what_the_gates_say(loaded_models, kind, protocol, gates, monkeypatch):
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=71)
    layers = prepare(loaded.model).layers
    place = gates(loaded.model)
    engine = Engine(loaded, PROTOCOLS[protocol])
    policy = methods.build("trimkv", gates=place)
    other = methods.build("snapkv", window=4)
    trace = Trace(monkeypatch)
    branches = [Branch(policy, budget=9), Branch(other, budget=9)]
    engine.run(prompt, branches, Generation(2))
    held = trace.passes[0][0]
    boundary = engine.boundary(prompt)
    expected = wanted(loaded.model, prompt, boundary, place, 9)
    assert [[sorted(head) for head in of[0]] for of in held.values()] == expected
    assert not any(layer.module._forward_pre_hooks for layer in layers)


def test_generate_inside_evict_reads_them_too(loaded_models, gates):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=72)
    place = gates(loaded.model)
    with harness.evict(loaded.model, "trimkv", budget=9, gates=place) as model:
        said = model.generate(**prompt.inputs, max_new_tokens=3, do_sample=False)
    branch = Branch(methods.build("trimkv", gates=place), budget=9)
    (result,) = Engine(loaded).run(prompt, [branch], Generation(3))
    new = said[0, prompt.inputs["input_ids"].shape[1] :].tolist()
    assert result.token_ids == new[: len(result.token_ids)]


def test_such_prompts_are_read_in_one_pass(loaded_models, gates, monkeypatch):
    from harness.engine import sharing

    monkeypatch.setattr(sharing, "LEAST", 1)
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=73)
    policy = methods.build("trimkv", gates=gates(loaded.model))
    usual = methods.build("snapkv", window=4)
    cut = Engine(loaded).prefills
    results = []
    for engine in (Engine(loaded), Engine(loaded, share_prefixes=False)):
        branches = [Branch(policy, budget=9), Branch(usual, budget=9)]
        results.append([one.token_ids for one in engine.run(prompt, branches, Generation(2))])
    assert results[0] == results[1]
    assert cut.share
