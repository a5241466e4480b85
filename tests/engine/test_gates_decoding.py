"""Gates that read new tokens: evictions against the formula on the masked full model's states."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import masked_oracle as oracle
import pytest
import torch
from engine_helpers import random_gates, stop_some
from safetensors.torch import load_file
from test_holding import build, close, run_traced
from tiny_models import PROTOCOLS, make_prompt

import harness
import methods
from harness.engine import Branch, Engine, Generation
from harness.engine.layout import prepare

TOKENS = 16
VARIANTS = {
    "hold": {"decode": "hold"},
    "hold_norms": {"decode": "hold", "strategy": "knorm_alpha"},
    "buffer": {"decode": "buffer", "buffer": 4},
    "buffer_norms": {"decode": "buffer", "buffer": 3, "strategy": "knorm_alpha"},
    "global": {"decode": "buffer", "buffer": 3, "budget": "global"},
    "global_hold": {"decode": "hold", "budget": "global", "strategy": "knorm_alpha"},
    "boundary": {"decode": "hold", "protect": "boundary", "boundary_share": 0.2},
}


@pytest.fixture
def gates(tmp_path: Path):
    """Makes random gates for a model."""
    return partial(random_gates, folder=tmp_path, seed=6, size=0.6)


def states(loaded, prompt, answer, masks, boundary):
    """What enters attention in the masked full model, float64 [length, C] by rank of the layer."""
    layers, seen = prepare(loaded.model).layers, {}

    def note(rank: int, module: torch.nn.Module, given: tuple[torch.Tensor], out: object) -> None:
        seen[rank] = given[0][0].double()

    hooks = [
        layer.module.q_proj.register_forward_hook(partial(note, layer.rank)) for layer in layers
    ]
    oracle.logits(loaded.model, prompt, answer, masks, boundary)
    for hook in hooks:
        hook.remove()
    return seen


def log_beta(place: str, rank: int, hidden: torch.Tensor) -> torch.Tensor:
    """float64 [length, Hkv]."""
    name = f"layers.{rank}.self_attn.retention_gate."
    parts = {n.removeprefix(name): t.double() for n, t in load_file(place).items() if name in n}
    inner = hidden @ parts["linear1.weight"].T
    inner = inner / (1 + (-inner).exp())
    return -(1 + (-(inner @ parts["linear2.weight"].T + parts["bias"])).exp()).log()


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [("llama", "replay"), ("llava", "context"), ("qwen", "paper"), ("gemma", "suffix")],
)
def test_what_goes_is_what_the_gates_say_of_the_full_models_states(
    loaded_models, kind, protocol, gates, monkeypatch
):
    """All variants in one batch, among others; scores are those of the moment of the eviction."""
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=75)
    place, engine = gates(loaded.model), Engine(loaded, PROTOCOLS[protocol])
    boundary = engine.boundary(prompt)
    policies = [methods.build("trimkv", gates=place, **more) for more in VARIANTS.values()]
    others = [methods.build("trimkv", gates=place), build("h2o"), build("tova")]
    branches = [Branch(), *(Branch(policy, budget=9) for policy in (*policies, *others))]
    trace, results, logits, row = run_traced(monkeypatch, engine, prompt, branches, TOKENS)
    length = prompt.modality.shape[0] + TOKENS - 1
    young = kept_oldest = 0
    for cell, result in enumerate(results):
        masks = trace.masks(row[cell], boundary, length)
        hidden = states(loaded, prompt, result.token_ids, masks, boundary)
        wanted = oracle.logits(loaded.model, prompt, result.token_ids, masks, boundary)
        close(logits[:, cell], wanted[-logits.shape[0] :])
        if not 1 <= cell <= len(policies):
            continue
        policy, evictions = policies[cell - 1], 0
        for layer in engine.layout.layers:
            beta = log_beta(place, layer.rank, hidden[layer.rank])
            norms = oracle.states[layer.index][1].double().norm(dim=-1)
            seen = boundary
            for (before, new), (after, _) in pairwise(trace.passes):
                seen += new
                for head, held in enumerate(before[layer.index][row[cell]]):
                    own = sorted([*held, *range(seen - new, seen)])
                    left = sorted(after[layer.index][row[cell]][head])
                    scores = {i: float((seen + 1 - i) * beta[i, head]) for i in own}
                    if policy.strategy == "knorm_alpha":
                        scores = {i: own + float(norms[head, i].log()) for i, own in scores.items()}
                    if policy.protect == "boundary":  # one token of nine at each end
                        scores[0] = scores[boundary - 1] = torch.inf
                    best = sorted(sorted(own), key=scores.__getitem__)[len(own) - len(left) :]
                    assert left == sorted(best)
                    evictions += len(own) > len(left)
                    gone = {*own} - {*left}
                    young += any(i >= boundary for i in gone)
                    kept_oldest += bool(gone) and own[0] in left
        assert evictions >= 3 * len(engine.layout.layers)
    assert young > 5
    assert kept_oldest > 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_generate_inside_evict_reads_new_tokens_as_the_engine_does(loaded_models, variant, gates):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=76)
    policy = methods.build("trimkv", gates=gates(loaded.model), **VARIANTS[variant])
    wanted = Engine(loaded).run(prompt, [Branch(policy, ratio=0.6)], Generation(14))[0]
    with harness.evict(loaded.model, policy, ratio=0.6):
        inputs = {name: value.clone() for name, value in prompt.inputs.items()}
        found = loaded.model.generate(
            **inputs, max_new_tokens=14, do_sample=False, eos_token_id=None
        )
    assert found[0, prompt.modality.shape[0] :].tolist() == wanted.token_ids
    layers = prepare(loaded.model).layers
    assert not any(layer.module._forward_pre_hooks for layer in layers)


def test_cells_that_finish_change_nothing_for_those_that_go_on(loaded_models, gates, monkeypatch):
    loaded, prompt = loaded_models["llama"], make_prompt("llama", seed=77)
    place = gates(loaded.model)
    policies = [methods.build("trimkv", gates=place, **more) for more in VARIANTS.values()]
    branches = [Branch(policy, budget=n) for policy in policies for n in (6, 17)]
    lengths = stop_some(monkeypatch, Engine(loaded), prompt, branches, 3)
    assert len(lengths) > 2
