"""Prompts that begin alike: equal answers with and without sharing, and how much is read."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine_helpers import Scatter, run_with_logits
from rotary_models import make
from tiny_models import IMAGE, PROTOCOLS, make_prompt, random_ids, wrap

import methods
from harness.engine import Branch, Engine, Generation, Protocol, batches, sharing
from harness.models.prompts import Prompt
from tests.methods import matrix

# These need every query, so their prompts are read in one pass.
WHOLE = ("post_vision", "expected_attention")
NAMES = tuple(name for name in matrix.NAMES if name not in ("full", *WHOLE))
TAIL = 9  # tokens of a question


@pytest.fixture(autouse=True)
def short_prefixes_are_worth_it(monkeypatch):
    monkeypatch.setattr(sharing, "LEAST", 8)


def questions(kind: str, count: int, seed: int = 0) -> list[Prompt]:
    """Prompts that differ behind their image, or behind the first 24 tokens of a text."""
    first = make_prompt(kind, seed)
    context = first.context or 24
    found = []
    for number in range(count):
        ids = first.inputs["input_ids"][:, :context]
        ids = torch.cat([ids, random_ids(TAIL + number, 50 + number)], dim=1)
        types = {n: (ids == IMAGE).long() for n in first.inputs if n.endswith("token_type_ids")}
        kinds = (ids[0] == IMAGE).long()
        found.append(Prompt({**first.inputs, **types, "input_ids": ids}, kinds, 3, context))
    return found


def all_branches() -> list[Branch]:
    policies = [methods.build(name) for name in NAMES]
    return [Branch(), *(Branch(p, ratio) for p in policies for ratio in (0.3, 0.6))]


class Passes:
    """Counts the tokens that go through the model's decoder."""

    def __init__(self, engine: Engine) -> None:
        self.lengths: list[int] = []
        layer = engine.layout.layers[0].module
        layer.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _module, _given, named):
        shape = named["hidden_states"].shape
        if shape[0] == 1:  # batches of cells decode
            self.lengths.append(shape[1])

    def taken(self) -> list[int]:
        lengths, self.lengths = self.lengths, []
        return lengths


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        *(("llama", "replay"), ("llama", "suffix"), ("llama", "context"), ("llama", "paper")),
        *(("llava", "replay"), ("llava", "context"), ("qwen", "replay")),
    ],
)
def test_answers_equal_those_without_sharing(kind, protocol, loaded_models, monkeypatch):
    loaded = loaded_models[kind]
    shared = Engine(loaded, PROTOCOLS[protocol])
    alone = Engine(loaded, PROTOCOLS[protocol], share_prefixes=False)
    branches = all_branches()
    for prompt in questions(kind, 3):
        wanted, logits = run_with_logits(monkeypatch, alone, prompt, branches, 3)
        found, near = run_with_logits(monkeypatch, shared, prompt, branches, 3)
        torch.testing.assert_close(near, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
        for a, b in zip(found, wanted, strict=True):
            assert a.token_ids == b.token_ids
            assert (a.kept_tokens, a.kept_image) == (b.kept_tokens, b.kept_image)
            assert (a.window, a.adaptive, a.fallback) == (b.window, b.adaptive, b.fallback)
        traced = [
            [r.kept_shares for r in e.run(prompt, branches, Generation(1), trace=True)]
            for e in (shared, alone)
        ]
        assert traced[0] == traced[1]


@pytest.mark.parametrize("kind", ["llama", "llava", "qwen"])
def test_what_prompts_share_is_read_once(kind, loaded_models):
    engine = Engine(loaded_models[kind])
    prompts = questions(kind, 3)
    engine.run(prompts[0], all_branches(), Generation(1))  # its split is checked by more passes
    engine.prefills = sharing.Prefills(engine.model, engine.layout)
    passes = Passes(engine)
    context = prompts[0].context
    for number, prompt in enumerate(prompts):
        engine.run(prompt, all_branches(), Generation(1))
        rest = TAIL + number - 1
        assert passes.taken() == ([rest] if number else [context, rest])


@pytest.mark.parametrize("name", WHOLE)
def test_methods_that_need_every_query_read_a_prompt_in_one_pass(name, loaded_models):
    engine = Engine(loaded_models["llava"])
    prompts = questions("llava", 2)
    branches = [Branch(), Branch(methods.build(name), 0.5)]
    engine.run(prompts[0], branches, Generation(1))  # its split is checked by more passes
    passes = Passes(engine)
    for number, prompt in enumerate(prompts):
        engine.run(prompt, branches, Generation(1))
        assert passes.taken() == [prompts[0].context + TAIL + number - 1]


def test_questions_behind_the_eviction_share_all_of_it(loaded_models):
    engine = Engine(loaded_models["llava"], Protocol("context"))
    prompts, branches = questions("llava", 2), all_branches()
    passes = Passes(engine)
    first = engine.run(prompts[0], branches, Generation(2))
    passes.taken()
    second = engine.run(prompts[1], branches[:-1], Generation(2))
    assert passes.taken() == []
    assert first[1].timings["prefill"] > 0
    assert (second[1].timings["prefill"], second[1].timings["score"]) == (0, 0)


def test_what_becomes_of_one_question_changes_nothing_for_the_next(loaded_models, monkeypatch):
    prompts, branches = questions("qwen", 3), all_branches()
    alone = Engine(loaded_models["qwen"], Protocol("context"), share_prefixes=False)
    free = [alone.run(prompt, branches, Generation(40)) for prompt in prompts]
    stops = frozenset(row[k].token_ids[k % 7] for row in free for k in range(0, len(branches), 3))
    shared = Engine(loaded_models["qwen"], Protocol("context"))
    for engine in (alone, shared):
        monkeypatch.setattr(engine.decoder, "stop_ids", stops)
    lengths = set()
    for number in (0, 1, 2, 1, 0):  # cells stop, grow over their tiles, and evict
        found, wanted = (e.run(prompts[number], branches, Generation(40)) for e in (shared, alone))
        assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
        lengths |= {len(one.token_ids) for one in found}
    assert len(shared.batches._held) == 1
    assert len(lengths) > 3


def test_questions_about_two_images_in_turn_keep_their_own_caches(loaded_models):
    one, two = (questions("llava", 3, seed) for seed in (0, 7))
    branches = all_branches()
    shared = Engine(loaded_models["llava"], Protocol("context"))
    alone = Engine(loaded_models["llava"], Protocol("context"), share_prefixes=False)
    for pair in zip(one, two, strict=True):
        for prompt in pair:
            asked = (prompt, branches, Generation(4), ("A",))
            found, wanted = (engine.run(*asked) for engine in (shared, alone))
            assert [each.token_ids for each in found] == [each.token_ids for each in wanted]
            for a, b in zip(found, wanted, strict=True):
                assert a.letter_logits["A"] == pytest.approx(b.letter_logits["A"], abs=1e-4)
    assert len(shared.batches._held) == 2


def test_a_trace_that_is_asked_for_later_is_there(loaded_models):
    engine = Engine(loaded_models["llava"], Protocol("context"))
    branches = all_branches()
    for prompt, trace in zip(questions("llava", 3), (False, False, True), strict=True):
        found = engine.run(prompt, branches, Generation(1), trace=trace)
        assert all((each.kept_shares is not None) == trace for each in found)


def test_another_end_of_the_question_is_another_selection(loaded_models):
    prompt = dataclasses.replace(make_prompt("llama"), context=36)  # all but the last token
    other = dataclasses.replace(prompt, suffix=20)
    branches = [Branch(methods.build("snapkv", window=4, window_anchor="question"), 0.6)]
    engine = Engine(loaded_models["llama"])
    seen = []
    for each in (prompt, other):
        alone = Engine(loaded_models["llama"], share_prefixes=False)
        found, wanted = (e.run(each, branches, Generation(1), trace=True) for e in (engine, alone))
        assert found[0].kept_shares == wanted[0].kept_shares
        seen.append(found[0].kept_shares)
    assert seen[0] != seen[1]


def test_an_answer_is_the_same_whatever_was_asked_before(loaded_models, monkeypatch):
    one, other = questions("llava", 2)
    engine = Engine(loaded_models["llava"])
    _, alone = run_with_logits(monkeypatch, engine, other, all_branches(), 1)
    engine = Engine(loaded_models["llava"])
    engine.run(one, all_branches(), Generation(1))
    _, after = run_with_logits(monkeypatch, engine, other, all_branches(), 1)
    assert torch.equal(alone, after)


def test_another_image_is_another_prefix(loaded_models):
    engine = Engine(loaded_models["llava"])
    one, two = questions("llava", 2)
    pixels = two.inputs["pixel_values"].flip(-1)
    other = dataclasses.replace(two, inputs={**two.inputs, "pixel_values": pixels})
    engine.run(one, all_branches(), Generation(1))
    passes = Passes(engine)
    engine.run(other, all_branches(), Generation(1))
    assert passes.taken() == [one.context, TAIL]
    engine.run(two, all_branches(), Generation(1))  # both are held
    assert passes.taken() == [TAIL]


def test_methods_that_need_more_of_a_prefix_have_it_read_again(loaded_models, monkeypatch):
    prompts = questions("llama", 3)
    engine = Engine(loaded_models["llama"])
    engine.run(prompts[0], [Branch(), Branch(methods.build("tova"), 0.5)], Generation(1))
    passes = Passes(engine)
    for name, known in (("snapkv", False), ("h2o", False), ("snapkv", True), ("h2o", True)):
        branches = [Branch(), Branch(methods.build(name), 0.5)]
        passes.taken()
        _, found = run_with_logits(monkeypatch, engine, prompts[1], branches, 1)
        assert (24 in passes.taken()) != known
        alone = Engine(loaded_models["llama"], share_prefixes=False)
        _, wanted = run_with_logits(monkeypatch, alone, prompts[1], branches, 1)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "policy",
    [Scatter(1, window=None), methods.build("h2o", causal=False, recent=4, decode="grow")],
    ids=["unknown", "sees the future"],
)
def test_a_method_that_needs_all_queries_gets_them(policy, loaded_models):
    engine = Engine(loaded_models["llama"])
    passes = Passes(engine)
    prompt = questions("llama", 1)[0]
    engine.run(prompt, [Branch(), Branch(policy, 0.5)], Generation(1))
    assert passes.taken()[-1] == 24 + TAIL - 1


def test_images_that_see_themselves_both_ways_are_read_with_their_question(loaded_models):
    shared, alone = (Engine(loaded_models["gemma"], share_prefixes=one) for one in (True, False))
    for prompt in questions("gemma", 2):
        asked = (prompt, all_branches(), Generation(3), ("A",))
        wanted, found = (engine.run(*asked) for engine in (alone, shared))
        assert [r.token_ids for r in found] == [r.token_ids for r in wanted]
        assert [r.letter_logits for r in found] == [r.letter_logits for r in wanted]
    passes = Passes(shared)
    shared.run(prompt, all_branches(), Generation(1))
    assert passes.taken() == [len(prompt.modality) - 1]


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "yarn"])
def test_keys_that_depend_on_the_length_are_read_in_one_pass(kind):
    engine = Engine(wrap(make(kind)))
    prompt = questions("llama", 1)[0]
    passes = Passes(engine)
    engine.run(prompt, all_branches(), Generation(1))
    rest = TAIL - 1
    assert passes.taken()[-1] == (rest if kind == "yarn" else 24 + rest)


def test_cached_positions_know_the_turns_of_both_passes(loaded_models, monkeypatch):
    policy = methods.build("streaming_llm", positions="cache")
    branches = [Branch(), Branch(policy, 0.4), Branch(policy, 0.0)]
    one, two = questions("llama", 2)
    shared, alone = (Engine(loaded_models["llama"], share_prefixes=each) for each in (True, False))
    shared.run(one, branches[:1], Generation(1))  # asks for no turns, and the next does
    found, wanted = (
        run_with_logits(monkeypatch, engine, two, branches, 4)[1] for engine in (shared, alone)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_prefix_that_would_fill_the_memory_is_not_held(loaded_models, monkeypatch):
    monkeypatch.setattr(batches, "free_memory", lambda device: 8_000)
    engine = Engine(loaded_models["llama"])
    one, two = questions("llama", 2)
    engine.run(one, all_branches(), Generation(1))
    passes = Passes(engine)
    engine.run(two, all_branches(), Generation(1))
    assert passes.taken() == [24, TAIL]


def test_memory_that_ran_out_takes_what_was_held_and_tries_again(loaded_models, monkeypatch):
    engine = Engine(loaded_models["llama"])
    one, two = questions("llama", 2)
    engine.run(one, all_branches(), Generation(1))
    own, calls = sharing.prefill, []

    def once(*args):
        calls.append(len(engine.prefills._held))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(*args)

    monkeypatch.setattr(sharing, "prefill", once)
    passes = Passes(engine)
    found = engine.run(two, all_branches(), Generation(2))
    assert calls == [1, 1]
    assert passes.taken() == [24, TAIL]  # read anew, since what was held is gone
    wanted = Engine(loaded_models["llama"]).run(two, all_branches(), Generation(2))
    assert [r.token_ids for r in found] == [r.token_ids for r in wanted]


def test_a_batch_that_did_not_fit_lets_go_what_is_held(loaded_models, monkeypatch):
    engine, branches = Engine(loaded_models["llava"], Protocol("context")), all_branches()
    one, two, three = questions("llava", 3)
    engine.run(one, branches, Generation(1))
    engine.run(two, branches, Generation(1))
    assert engine.prefills._held
    assert engine.batches._held
    own, calls = engine.decoder.run, []

    def once(*args):
        calls.append((len(engine.prefills._held), len(engine.batches._held)))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(*args)

    monkeypatch.setattr(engine.decoder, "run", once)
    found = engine.run(three, branches, Generation(2))
    assert calls[0] == (1, 1)
    assert calls[1][0] == 0
    wanted = Engine(loaded_models["llava"], Protocol("context")).run(three, branches, Generation(2))
    assert [r.token_ids for r in found] == [r.token_ids for r in wanted]


def test_a_model_that_cannot_be_split_there_is_read_in_one_pass(loaded_models, monkeypatch):
    def refuse(model, layout, inputs, positions, modality, boundary):
        raise ValueError("answers otherwise")

    monkeypatch.setattr(sharing, "check_split", refuse)
    engine = Engine(loaded_models["llama"])
    passes = Passes(engine)
    prompt = questions("llama", 1)[0]
    engine.run(prompt, all_branches(), Generation(1))
    assert passes.taken()[-1] == 24 + TAIL - 1
