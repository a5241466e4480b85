"""DBTrimKV while decoding: which entries of all layers go, by loops in float64 over all of them."""

from __future__ import annotations

from itertools import pairwise

import masked_oracle as oracle
import pytest
import torch
from engine_helpers import random_gates
from test_gates_decoding import log_beta, states
from test_holding import build, close, run_traced
from tiny_models import PROTOCOLS, make_prompt

import methods
from harness.engine import Branch, Engine

TOKENS, BUDGET = 16, 8
VARIANTS = {
    "hold": {"decode": "hold"},
    "hold_norms": {"decode": "hold", "strategy": "knorm_alpha"},
    "buffer": {"decode": "buffer", "buffer": 4},
    "buffer_norms": {"decode": "buffer", "buffer": 3, "strategy": "knorm_alpha"},
    "boundary": {"decode": "hold", "protect": "boundary", "boundary_share": 0.15},
}


def left(entries, heads, count):
    """Of (score, head, place), the best of each head, then the best of all, `count` in all."""
    order = sorted(entries, reverse=True)
    first = {}
    for entry in order:
        first.setdefault(entry[1], entry)
    assert len(first) == heads
    rest = [entry for entry in order if entry not in first.values()]
    stay = [*first.values(), *rest[: count - heads]]
    return [{place for _, own, place in stay if own == head} for head in range(heads)]


def course(policy, betas, norms, boundary, passes, limit):
    """Sets [head of all layers] of places before each pass, each of `passes` new tokens; betas and
    norms [head][place], limit: entries a head on average that are held.
    """
    heads, seen = len(betas), boundary

    def scored(held):
        found = []
        for head, places in enumerate(held):
            for place in places:
                score = (seen + 1 - place) * float(betas[head][place])
                if policy.strategy == "knorm_alpha":
                    score += float(norms[head][place].log())
                if policy.protect == "boundary" and place in (0, boundary - 1):
                    score = torch.inf  # one token of eight at each end
                found.append((score, head, place))
        return found

    held = left(scored([set(range(boundary))] * heads), heads, BUDGET * heads)
    for new in passes:
        yield held
        held = [own | set(range(seen, seen + new)) for own in held]
        seen += new
        over = sum(map(len, held)) // heads - limit
        assert sum(map(len, held)) == heads * (limit + over)
        if over >= max(1, policy.period):
            held = left(scored(held), heads, limit * heads)


@pytest.mark.parametrize(
    ("kind", "protocol"), [("llama", "replay"), ("llava", "replay"), ("llava", "context")]
)
def test_all_layers_compete_for_the_budget_of_a_cell(
    loaded_models, kind, protocol, tmp_path, monkeypatch
):
    """In one batch with each other and with cells whose layers do not compete."""
    loaded, prompt = loaded_models[kind], make_prompt(kind, seed=78)
    place = random_gates(loaded.model, tmp_path, seed=8, size=0.6)
    engine = Engine(loaded, PROTOCOLS[protocol])
    boundary = engine.boundary(prompt)
    policies = [
        methods.build("trimkv", gates=place, budget="global", **more) for more in VARIANTS.values()
    ]
    others = [methods.build("trimkv", gates=place, decode="hold"), build("h2o"), build("tova")]
    cells = [Branch(policy, budget=BUDGET) for policy in (*policies, *others)]
    branches = [Branch(), *cells, Branch(policies[0], budget=BUDGET + 5)]
    trace, results, logits, row = run_traced(monkeypatch, engine, prompt, branches, TOKENS)
    layers, new = engine.layout.layers, [new for _, new in trace.passes]
    limit = BUDGET + (new[0] if protocol == "context" else 0)
    moved, across = set(), 0
    for cell, result in enumerate(results):
        masks = trace.masks(row[cell], boundary, prompt.modality.shape[0] + TOKENS - 1)
        hidden = states(loaded, prompt, result.token_ids, masks, boundary)
        wanted = oracle.logits(loaded.model, prompt, result.token_ids, masks, boundary)
        close(logits[:, cell], wanted[-logits.shape[0] :])
        if not 1 <= cell <= len(policies):
            continue
        betas = [
            own for layer in layers for own in log_beta(place, layer.rank, hidden[layer.rank]).T
        ]
        norms = [
            own for layer in layers for own in oracle.states[layer.index][1].double().norm(dim=-1)
        ]
        expected = course(policies[cell - 1], betas, norms, boundary, new, limit)
        found = [
            [set(head) for layer in layers for head in held[layer.index][row[cell]]]
            for held, _ in trace.passes
        ]
        assert found == list(expected)
        for before, after in pairwise(found):
            sizes = [len(own) - len(earlier) for earlier, own in zip(before, after, strict=True)]
            if len(set(sizes)) > 1:
                moved.add(cell)
            of_layers = [sum(pair) for pair in zip(sizes[::2], sizes[1::2], strict=True)]
            across += len(set(of_layers)) > 1
    assert moved == set(range(1, len(policies) + 1))
    assert across > 20
