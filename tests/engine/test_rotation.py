"""Queries that are shown without their rotary positions, and the rotation of those to come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from rotary_models import CONFIGS, make
from test_rotary_models import REFUSED
from tiny_models import make_prompt, random_ids, wrap

import harness
import methods
from harness.engine import Branch, Engine, Generation, Protocol
from harness.engine.attention import listening
from harness.engine.layout import prepare
from harness.models.prompts import Prompt

LENGTH, AHEAD = 21, 6  # below and above LONGEST together


@dataclass(frozen=True, kw_only=True)
class Probe(methods.Policy):
    """Notes what the first layer shows."""

    name: ClassVar[str] = "probe"
    unrotates: ClassVar[bool] = True
    window: None = field(default=None, init=False)
    seen: list = field(default_factory=list)

    def measure(self, view):
        if view.layer == 0:
            plain = view.rotation.undo(view.queries)
            self.seen.append((plain, view.rotation.ahead(plain[:, :, -1], AHEAD)))
        return view.keys.float().norm(dim=-1)


class FirstQueries:
    """Queries of the first layer, which no position but their own has influenced."""

    found = None

    def attend(self, module, query, key, value, mask, scaling):
        if module.layer_idx == 0:
            self.found = query


@torch.no_grad()
def queries_at(model, ids, positions):
    prepare(model)
    first = FirstQueries()
    with listening(first):
        model(ids, position_ids=positions[None], use_cache=False)
    return first.found


@pytest.mark.parametrize("generates", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_policy_sees_plain_queries_and_the_mean_of_what_they_will_be(kind, generates):
    loaded, probe = wrap(make(kind)), Probe()
    ids = random_ids(LENGTH, seed=6)
    if generates:
        with harness.evict(loaded.model, probe, ratio=0.5, protocol="paper"):
            loaded.model.generate(input_ids=ids.clone(), max_new_tokens=1)
    else:
        prompt = Prompt({"input_ids": ids}, torch.zeros(LENGTH, dtype=torch.long), 0, None)
        Engine(loaded, Protocol("paper")).run(prompt, [Branch(probe, ratio=0.5)], Generation(1))
    plain, ahead = probe.seen[0]
    scale = loaded.model.get_decoder().rotary_emb.attention_scaling
    fresh = make(kind)
    still = queries_at(fresh, ids, torch.zeros(LENGTH, dtype=torch.long)) / scale
    torch.testing.assert_close(plain, still, rtol=1e-4, atol=1e-5)
    # One token at every position to come, in a sequence that ends with the last of them.
    repeated = ids[:, -1:].expand(1, AHEAD)
    coming = queries_at(make(kind), repeated, torch.arange(LENGTH, LENGTH + AHEAD)).mean(2)
    torch.testing.assert_close(ahead, coming, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_models_without_plain_positions_are_refused_in_one_sentence(kind):
    reason, builder = REFUSED[kind]
    prompt = make_prompt(kind if kind in ("qwen", "gemma") else "llama", seed=55)
    branch = Branch(methods.build("expected_attention"), ratio=0.5)
    with pytest.raises(ValueError, match=reason) as refusal:
        Engine(wrap(builder())).run(prompt, [branch], Generation(2))
    message = str(refusal.value)
    assert message.startswith("expected_attention averages")
    assert message.endswith("choose another method.")
    assert ". " not in message
