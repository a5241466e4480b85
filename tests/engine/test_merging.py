"""Merging in the engine: against the whole model, its entries merged one by one and masked."""

from __future__ import annotations

import masked_oracle as oracle
import pytest
import torch
from engine_helpers import Trace, run_with_logits
from test_oracles import close
from tiny_models import KINDS, PROTOCOLS, make_prompt

import harness
import methods
from harness.engine import Branch, Engine, Generation

TOKENS = 4
SHAPES = [
    ("snapkv", {"merge": "none"}),
    ("snapkv", {"merge": "average"}),
    ("snapkv", {"merge": "weighted", "budget": "adaptive"}),
    ("snapkv", {"merge": "pivot", "budget": "global"}),
    ("look_m", {}),
    ("tova", {"merge": "pivot", "decode": "grow"}),
]


def build(name, **params):
    window = {"window": 3} if name == "snapkv" else {}
    return methods.build(name, **window, **params)


def masks(engine, trace, cell, boundary):
    """bool [Hkv, boundary] a layer: what a cell holds when it begins to decode."""
    found = {}
    for index, cells in trace.passes[0][0].items():
        mask = torch.zeros(len(cells[cell]), boundary, dtype=torch.bool)
        for head, places in enumerate(cells[cell]):
            mask[head, places] = True
        found[index] = mask
    return found


@pytest.mark.parametrize(
    ("kind", "protocol"), [*((kind, "replay") for kind in KINDS), ("qwen", "context")]
)
def test_logits_equal_those_of_the_whole_model_with_merged_entries(
    loaded_models, kind, protocol, monkeypatch
):
    """Cells of one prompt decode together, with and without merging, and share nothing."""
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=74)
    engine = Engine(loaded, PROTOCOLS[protocol])
    boundary, budget = engine.boundary(prompt), 12
    policies = [build(name, **params) for name, params in SHAPES]
    branches = [Branch(), *(Branch(policy, budget=budget) for policy in policies)]
    branches.append(Branch(policies[1], budget=5))
    with monkeypatch.context() as patch:
        trace = Trace(patch)
        results, logits = run_with_logits(patch, engine, prompt, branches, TOKENS)
    order = sorted(range(len(branches)), key=lambda i: -(branches[i].budget or boundary))
    changed = 0
    for cell, (branch, result) in enumerate(zip(branches, results, strict=True)):
        if branch.policy is None:
            continue
        kept = masks(engine, trace, order.index(cell), boundary)
        rule = branch.policy.merge if branch.policy.merge != "none" else None
        wanted = oracle.logits(loaded.model, prompt, result.token_ids, kept, boundary, merge=rule)[
            -logits.shape[0] :
        ]
        close(logits[:, cell], wanted)
        apart = oracle.logits(loaded.model, prompt, result.token_ids, kept, boundary)
        changed += not torch.allclose(wanted, apart[-logits.shape[0] :], rtol=1e-3, atol=1e-3)
    assert changed >= 5 - (kind == "llama")  # all text stays of a prompt without images


def test_the_same_prompt_again_and_another_answer_merge_alike(loaded_models):
    """What an earlier run wrote into its entries is not in the cache that the next one reads."""
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=72)
    engine = Engine(loaded, PROTOCOLS["context"])
    cells = [Branch(build("snapkv", merge=how), ratio=0.7) for how in ("pivot", "none", "average")]
    runs = [engine.run(prompt, cells, Generation(6)) for _ in range(2)]
    runs.append([engine.run(prompt, [cell], Generation(6))[0] for cell in cells])
    answers = [[each.token_ids for each in run] for run in runs]
    assert answers[0] == answers[1] == answers[2]


def test_generate_inside_evict_merges(loaded_models):
    loaded, prompt = loaded_models["llava"], make_prompt("llava", seed=73)
    for name, params in SHAPES[2:5]:
        wanted = Engine(loaded).run(prompt, [Branch(build(name, **params), ratio=0.5)],
                                    Generation(6))[0]  # fmt: skip
        with harness.evict(loaded.model, build(name, **params), ratio=0.5):
            inputs = {key: value.clone() for key, value in prompt.inputs.items()}
            found = loaded.model.generate(
                **inputs, max_new_tokens=6, do_sample=False, eos_token_id=None
            )
        assert found[0, prompt.modality.shape[0] :].tolist() == wanted.token_ids
