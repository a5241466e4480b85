"""KVzip in the engine: its extra pass against eager code that repeats by itself."""

from __future__ import annotations

import copy

import pytest
import rotary_models
import torch
from eager import eager, weights
from engine_helpers import Trace
from test_sharing import questions
from tiny_models import PROTOCOLS, make_prompt
from transformers import DynamicCache

import harness
import methods
from harness.engine import (
    Branch,
    Engine,
    Generation,
    contexts,
    prefill,
    prefixes,
    reciting,
    sharing,
)
from harness.engine.inputs import first_part, position_ids
from harness.models.prompts import Prompt

SINKS, FREE = 4, 5


@pytest.fixture(autouse=True)
def short_prefixes_are_worth_it(monkeypatch):
    monkeypatch.setattr(sharing, "LEAST", 8)


def alike(kind: str, count: int) -> list[Prompt]:
    """Questions that end with the same tokens of a chat template."""
    prompts = questions(kind, count)
    for prompt in prompts:
        prompt.inputs["input_ids"][:, -prompt.suffix :] = torch.tensor([21, 22, 23])
    return prompts


def repeated(loaded, prompt, chunk: int) -> list[torch.Tensor]:
    """The most attention of each layer [Hkv, context - SINKS], over full attention rows."""
    model, end = eager(loaded.model), prompt.context
    positions = position_ids(loaded.model, prompt.inputs, prompt.modality)
    read = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda _, given, named: read.append(named.get("inputs_embeds")), with_kwargs=True
    )
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(
            **first_part(prompt.inputs, end), position_ids=positions[..., :end],
            past_key_values=cache,
        )  # fmt: skip
    hook.remove()
    embed, ids = model.get_input_embeddings(), prompt.inputs["input_ids"]
    states = embed(ids[:, :end]) if read[0] is None else read[0]
    suffix, found = embed(ids[:, -prompt.suffix :]), []
    for start in range(SINKS, end, chunk):
        stop = min(start + chunk, end)
        words = [reciting.WORDS, reciting.GO_ON][start > SINKS]
        asked = loaded.tokenizer(words, add_special_tokens=False, return_tensors="pt").input_ids
        hint = slice(max(SINKS, start - 8), start if start > SINKS else 0)
        pieces = [embed(asked), states[:, hint], suffix, states[:, start:stop]]
        after, places = int(positions[..., :end].max()) + 1, []
        for piece, span in zip(pieces, [None, hint, None, slice(start, stop)], strict=True):
            own = torch.arange(piece.shape[1]).expand(*positions.shape[:-1], -1)
            if span is not None and piece.shape[1]:
                own = positions[..., span] - positions[..., span].min()
            places.append(own + after)
            after = int(places[-1].max()) + 1 if piece.shape[1] else after
        attention = weights(
            model, inputs_embeds=torch.cat(pieces, 1), position_ids=torch.cat(places, -1),
            past_key_values=copy.deepcopy(cache),
        )  # fmt: skip
        seen = [*range(SINKS), *range(start, stop), *range(end, attention[0].shape[-1])]
        parts = []
        for each in attention:
            among = each[..., seen] / each[..., seen].sum(-1, keepdim=True)
            span = among[..., SINKS : SINKS + stop - start]
            parts.append(span.unflatten(0, (2, -1)).amax((1, 2)))
        found.append(parts)
    return [torch.cat(layer, -1) for layer in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("kind", "protocol", "share", "chunk"),
    [
        ("llama", "context", True, 2000), ("llama", "replay", False, 9),
        ("llava", "replay", True, 9), ("llava", "replay", False, 2000),
        ("qwen", "replay", True, 7), ("qwen", "suffix", False, 11),
    ],
)  # fmt: skip
def test_cells_keep_what_is_repeated_with(loaded_models, kind, protocol, share, chunk, monkeypatch):
    loaded, prompt = loaded_models[kind], questions(kind, 1, seed=91)[0]
    engine = Engine(loaded, PROTOCOLS[protocol], share_prefixes=share)
    boundary = engine.boundary(prompt)
    behind = [*range(prompt.context, boundary)]
    budget = SINKS + FREE + len(behind)
    other = methods.build("snapkv", window=4)
    policies = [methods.build("kvzip", chunk=chunk), other]
    trace, scores = Trace(monkeypatch), []
    measure = methods.kvzip.KVzip.measure

    def noted(policy, view):
        scores.append(measure(policy, view)[0])
        return measure(policy, view)

    monkeypatch.setattr(methods.kvzip.KVzip, "measure", noted)
    engine.run(prompt, [Branch(policy, budget=budget) for policy in policies], Generation(2))
    wanted = repeated(loaded, prompt, chunk)
    for ours, theirs in zip(scores, wanted, strict=True):
        span = ours[:, SINKS : prompt.context]
        torch.testing.assert_close(span, theirs, rtol=1e-3, atol=1e-6)
    held = [[sorted(head) for head in cells[0]] for cells in trace.passes[0][0].values()]
    assert held == [
        [
            [*range(SINKS), *(SINKS + head.topk(FREE).indices.sort().values).tolist(), *behind]
            for head in layer
        ]
        for layer in wanted
    ]


def caught(monkeypatch) -> list[tuple[int, list[torch.Tensor]]]:
    """Parts that are repeated, and what the prompt's cache holds before and after each."""
    calls, original = [], reciting.Recital.recite

    def noted(self, cache, seen, both_ways, chunk):
        states = [(each.keys, each.values) for each in cache.layers]
        before = [part.clone() for pair in states for part in pair]
        found = original(self, cache, seen, both_ways, chunk)
        after = [part for each in cache.layers for part in (each.keys, each.values)]
        assert all(a is b for a, b in zip(after, sum(states, ()), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        calls.append(chunk)
        return found

    monkeypatch.setattr(reciting.Recital, "recite", noted)
    return calls


@pytest.mark.parametrize("share", [True, False])
def test_one_pass_serves_all_ratios_and_leaves_the_cache_alone(loaded_models, share, monkeypatch):
    calls, prompts = caught(monkeypatch), alike("llava", 3)
    engine = Engine(loaded_models["llava"], share_prefixes=share)
    policy, rule = methods.build("kvzip"), methods.build("kvzip", budget="global")
    usual = [Branch(), Branch(methods.build("snapkv", window=4), ratio=0.5)]
    alone = engine.run(prompts[0], usual, Generation(3))
    assert calls == []  # nobody asks for it
    cells = [Branch(policy, ratio=ratio) for ratio in (0.0, 0.3, 0.6)] + [Branch(rule, ratio=0.5)]
    results = engine.run(prompts[0], [*usual, *cells], Generation(3))
    assert [one.token_ids for one in results[:2]] == [one.token_ids for one in alone]
    assert results[2].token_ids == results[0].token_ids  # ratio 0
    assert calls == [2000]
    for prompt in prompts[1:]:
        engine.run(prompt, cells, Generation(2))
    assert len(calls) == (1 if share else 3)  # what prompts begin with is repeated once


def test_its_time_is_that_of_scoring(loaded_models, monkeypatch):
    clock, original = [0.0], reciting.Recital.recite

    def slow(*given):
        clock[0] += 100.0
        return original(*given)

    monkeypatch.setattr(reciting.Recital, "recite", slow)
    ticking = lambda device: clock[0]  # noqa: E731
    for module in (prefixes, prefill):
        monkeypatch.setattr(module, "clock", ticking)
    monkeypatch.setattr("harness.engine.passes.time.perf_counter", lambda: clock[0])
    prompt = questions("llava", 1)[0]
    for share in (True, False):
        engine = Engine(loaded_models["llava"], share_prefixes=share)
        (result,) = engine.run(prompt, [Branch(methods.build("kvzip"), 0.5)], Generation(1))
        assert result.timings["score"] == 100.0
        assert result.timings["prefill"] == 0.0


def test_a_question_changes_nothing_of_the_context(loaded_models, monkeypatch):
    engine = Engine(loaded_models["llava"], share_prefixes=False)
    trace, held = Trace(monkeypatch), []
    for prompt in alike("llava", 2):
        behind = len(prompt.modality) - 1 - prompt.context
        budget = SINKS + FREE + behind
        engine.run(prompt, [Branch(methods.build("kvzip"), budget=budget)], Generation(1))
        layers = trace.passes[-1][0].values()
        own = [[sorted(head)[: SINKS + FREE] for head in of[0]] for of in layers]
        assert max(max(head) for of in own for head in of) < prompt.context
        held.append(own)
    assert held[0] == held[1]


@pytest.mark.parametrize(
    ("kind", "protocol", "sentence"),
    [
        ("llama", "replay", "this prompt marks none"),
        ("gemma", "context", "lets images see themselves both ways"),
    ],
)
def test_what_cannot_be_repeated_is_refused(loaded_models, kind, protocol, sentence):
    engine = Engine(loaded_models[kind], PROTOCOLS[protocol])
    cells = [Branch(methods.build("kvzip"), ratio=0.5)]
    with pytest.raises(ValueError, match=sentence) as error:
        engine.run(make_prompt(kind), cells, Generation(1))
    assert "\n" not in str(error.value)


def test_a_text_that_needs_more_positions_than_there_are_is_refused(loaded_models, monkeypatch):
    loaded = loaded_models["llama"]
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 60)
    cells = [Branch(methods.build("kvzip"), ratio=0.5)]
    with pytest.raises(ValueError, match="takes 60 positions, and that needs"):
        Engine(loaded).run(questions("llama", 1)[0], cells, Generation(1))


def test_a_text_that_would_be_rotated_otherwise_is_refused(loaded_models, monkeypatch):
    assert reciting.switches_at(rotary_models.make("longrope")) == rotary_models.LONGEST
    assert reciting.switches_at(rotary_models.make("yarn")) is None
    prompt = questions("llama", 1)[0]
    engine, cells = Engine(loaded_models["llama"]), [Branch(methods.build("kvzip"), ratio=0.5)]
    read = prompt.context
    for switch in (read - 1, 1000):  # the prompt itself is beyond it, or what is repeated is not
        monkeypatch.setattr(reciting, "switches_at", lambda model, at=switch: at)
        engine.run(prompt, cells, Generation(1))
        engine.forget()
    monkeypatch.setattr(reciting, "switches_at", lambda model: read)
    with pytest.raises(ValueError, match=r"rotates otherwise from .* give a smaller chunk"):
        engine.run(prompt, cells, Generation(1))


def test_generate_inside_evict_knows_no_words(loaded_models):
    with (
        pytest.raises(ValueError, match="run it as method=kvzip"),
        harness.evict(loaded_models["llama"].model, "kvzip", ratio=0.5),
    ):
        pass


def test_it_is_said_of_a_prompt_before_anything_is_read(loaded_models, monkeypatch):
    loaded, prompt = loaded_models["llama"], questions("llama", 1)[0]
    cells = [Branch(methods.build("kvzip"), ratio=0.5)]
    engine, (first, end) = Engine(loaded), (reciting.SINKS, prompt.context)
    words = len(loaded.encode(reciting.GO_ON)) + reciting.HINT + prompt.suffix
    needed = end + words + end - first
    contexts.check(engine, prompt, cells)
    with monkeypatch.context() as patch:
        patch.setattr(loaded.model.config, "max_position_embeddings", needed)
        contexts.check(engine, prompt, cells)
        engine.run(prompt, cells, Generation(1))
        patch.setattr(loaded.model.config, "max_position_embeddings", needed - 1)
        patch.setattr(loaded.model, "forward", None)
        with pytest.raises(ValueError, match=f"positions, and that needs {needed:,}"):
            contexts.check(engine, prompt, cells)
        contexts.check(engine, prompt, [Branch(methods.build("kvzip", chunk=3), ratio=0.5)])
        contexts.check(engine, prompt, [Branch(), Branch(methods.build("snapkv"), ratio=0.5)])
