"""Keys that are given the rotary positions of their place in the cache."""

from __future__ import annotations

import copy

import masked_oracle as oracle
import pytest
import torch
from engine_helpers import Trace, run_with_logits, stop_some
from rotary_models import CONFIGS, INTERLEAVED, LONGEST, make
from tiny_models import make_prompt, random_ids, wrap

import harness
import methods
from harness.engine import Branch, Engine, Generation, Protocol
from harness.engine.attention import listening
from harness.engine.layout import prepare
from harness.engine.rotary import Rotary
from harness.models.prompts import Prompt

TOKENS = 9


def slow(kind: str):
    return pytest.param(kind, marks=pytest.mark.slow)


class FirstLayer:
    """Sees the keys of the first layer, which no position but their own has influenced."""

    keys = None

    def attend(self, module, query, key, value, mask, scaling):
        if module.layer_idx == 0:
            self.keys = key


@torch.no_grad()
def turned_by(model, positions):
    """Keys [1, Hkv, n, d] of fixed tokens that the model turned to these positions; its Rotary."""
    layout, first = prepare(model), FirstLayer()
    rotary = Rotary(model, layout)
    with listening(first), rotary.following():
        model(random_ids(len(positions), seed=6), position_ids=positions[None], use_cache=False)
        cos, sin = rotary.now
    return first.keys, (cos[:, None], sin[:, None]), rotary


def exactly(plain, count, kind):
    """Plain keys turned to places 0..count - 1 in float64, by what a fresh model multiplies."""
    module = make(kind).get_decoder().rotary_emb
    module(torch.empty(0), torch.arange(count)[None])
    pair = module.inv_freq, module.attention_scaling
    keys = plain[0].double()
    if kind in INTERLEAVED:
        keys = torch.cat([keys[..., ::2], keys[..., 1::2]], dim=-1)
    found = torch.stack([oracle.turned(head, torch.arange(count), pair) for head in keys])
    if kind in INTERLEAVED:
        found = torch.stack(found.chunk(2, dim=-1), dim=-1).flatten(-2)
    return found[None]


def expect_near(found, wanted, within):
    error = (found.double() - wanted.double()).norm(dim=-1)
    assert float((error / wanted.double().norm(dim=-1)).max()) < within


def positions_of(count):
    return 2 * torch.arange(count) + 1


@pytest.mark.parametrize("count", [12, LONGEST, 30])  # of 2 * count positions
@pytest.mark.parametrize("kind", CONFIGS)
def test_keys_turn_from_their_positions_to_their_places(kind, count):
    """As if a fresh model had met them there, whatever the model has met before."""
    plain, _, once = turned_by(make(kind), torch.zeros(count, dtype=torch.long))
    plain = plain / once.module.attention_scaling
    keys, turns, rotary = turned_by(make(kind), positions_of(count))
    undone = rotary.undo(keys, turns)
    expect_near(undone, plain, 1e-5)
    cos, sin = (each[:count] for each in rotary.table(count, keys.device))
    again = rotary.turn(undone, (cos, sin))
    expect_near(again, turned_by(make(kind), torch.arange(count))[0], 1e-5)
    expect_near(again, exactly(plain, count, kind), 1e-5)
    assert float((again - keys).norm(dim=-1).max()) > 0.1  # places are not positions


@pytest.mark.parametrize("kind", CONFIGS)
def test_half_precision_keys_turn_within_their_rounding(kind):
    """The model rounds turns and keys to 8 bits; undoing must not add to that."""
    count, zero = 30, torch.zeros(30, dtype=torch.long)
    plain, _, once = turned_by(make(kind, torch.bfloat16), zero)
    scale = torch.tensor(once.module.attention_scaling).bfloat16()
    plain = plain.float() / scale.float()
    keys, turns, rotary = turned_by(make(kind, torch.bfloat16), positions_of(count))
    assert keys.dtype == torch.bfloat16
    undone = rotary.undo(keys, turns)
    assert undone.dtype == torch.float32
    expect_near(undone, plain, 2**-7)
    cos, sin = (each[:count] for each in rotary.table(count, keys.device))
    assert cos.dtype == torch.float32
    expect_near(rotary.turn(undone, (cos, sin)), exactly(plain, count, kind), 2**-7)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_table_leaves_the_model_and_its_turns_alone(kind):
    """The decoder asks for one within a pass, whose later layers still need the pass's own."""
    model, positions = make(kind), positions_of(30)
    rotary = Rotary(model, prepare(model))
    with rotary.following():
        model(random_ids(30, seed=6), position_ids=positions[None], use_cache=False)
        before, state = rotary.now, copy.deepcopy(rotary.module.inv_freq)
        rotary.table(40, torch.device("cpu"))
        assert rotary.now is before
        assert torch.equal(rotary.module.inv_freq, state)
    assert rotary.now is None
    assert not rotary.module._forward_hooks


def others():
    policies = {
        "h2o": {"average": "visible_mean"},
        "tova": {},
        "snapkv": {"window": 6, "budget": "adaptive"},
        "random": {},
    }
    return [methods.build(name, **params) for name, params in policies.items()]


def reindexing(decode):
    return [
        methods.build("streaming_llm", sinks=2, positions="cache", decode=decode),
        methods.build("lacache", span=1, start=2, positions="cache", decode=decode),
    ]


def cells(budgets):
    """Re-indexed ones of both kinds of decoding, the full cache, and other methods' between."""
    policies = [*reindexing("hold"), *others(), *reindexing("grow")]
    return [Branch(), *(Branch(policy, budget=n) for n in budgets for policy in policies)]


def is_reindexed(branch):
    return branch.policy is not None and branch.policy.positions == "cache"


def dynamic_frequencies(length):
    """Those of 8 dimensions of a head, NTK-scaled by 2 beyond LONGEST tokens."""
    stretch = max(1.0, 2.0 * length / LONGEST - 1.0)
    base = 10000.0 * stretch ** (8 / 6)
    return base ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)


def ranked_by_length(query, key, hidden, boundary):
    """oracle.ranked where the frequencies depend on how many keys a query sees."""
    heads, length = key.shape[:2]
    before, products = oracle._state["rotary"], []
    every = torch.arange(length)
    for head in range(heads):
        plain = [oracle.turned(x[head], every, before, back=True) for x in (query, key)]
        for row in range(boundary, length):
            seen = (~hidden[head, row]).nonzero()[:, 0]
            ranks, now = torch.arange(len(seen)), (dynamic_frequencies(len(seen)), 1.0)
            own = oracle.turned(plain[0][row : row + 1], ranks[-1:], now)
            product = torch.zeros(length, dtype=torch.float64)
            product[seen] = oracle.turned(plain[1][seen], ranks, now) @ own[0]
            products.append(product)
    return torch.stack(products).view(heads, length - boundary, length).float()


def reference(kind, model, boundary, monkeypatch):
    """A model for the oracle and its frequencies; `dynamic` ones stay those of the prompt."""
    if kind != "dynamic":
        rotary = model.get_decoder().rotary_emb
        return model, (rotary.inv_freq, rotary.attention_scaling)
    still = make("default")
    still.load_state_dict(model.state_dict())
    frequencies = dynamic_frequencies(boundary)
    still.model.rotary_emb.inv_freq.copy_(frequencies)
    monkeypatch.setattr(oracle, "ranked", ranked_by_length)
    return still, (still.model.rotary_emb.inv_freq, 1.0)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=3e-4, atol=3e-4)


PROTOCOLS = {
    "replay": Protocol("replay"),
    "suffix": Protocol("replay", "suffix"),
    "paper": Protocol("paper"),
}
# Several tokens in one pass share the frequencies of the last one, which the oracle does not know.
CASES = [
    pytest.param(kind, protocol, marks=[pytest.mark.slow] * (kind in ("yarn", "stablelm")))
    for kind in ("default", "yarn", "dynamic", "phi", "stablelm")
    for protocol in PROTOCOLS
    if (kind, protocol) != ("dynamic", "suffix")
]


def moved_cells(kind, protocol, prompt, branches, monkeypatch):
    """Compare every cell with the masked model; how many re-indexed ones positions matter to."""
    loaded = wrap(make(kind))
    engine = Engine(loaded, protocol)
    boundary = engine.boundary(prompt)
    trace = Trace(monkeypatch)
    results, logits = run_with_logits(monkeypatch, engine, prompt, branches, TOKENS)
    asked = [boundary if b.policy is None else b.budget for b in branches]
    row = sorted(range(len(branches)), key=lambda i: -asked[i])
    length = prompt.modality.shape[0] + TOKENS - 1
    model, rotary = reference(kind, loaded.model, boundary, monkeypatch)
    moved = 0
    for cell, (branch, result) in enumerate(zip(branches, results, strict=True)):
        if kind == "dynamic" and not is_reindexed(branch):
            continue  # keys of every step were turned by other frequencies
        masks = trace.masks(row.index(cell), boundary, length)
        own = rotary if is_reindexed(branch) else None
        wanted = oracle.logits(model, prompt, result.token_ids, masks, boundary, own)
        close(logits[:, cell], wanted[-len(logits) :])
        if own is not None:
            still = oracle.logits(model, prompt, result.token_ids, masks, boundary)
            moved += not torch.allclose(wanted, still, rtol=1e-2, atol=1e-2)
    return moved


@pytest.mark.parametrize(("kind", "protocol"), CASES)
def test_each_step_sees_keys_at_their_places(kind, protocol, monkeypatch):
    """Cells of many budgets and methods in one batch, each against the masked model."""
    prompt, branches = make_prompt("llama", seed=51), cells([30, 19, 8])  # of 37 tokens
    # The test would be empty if positions did not matter.
    assert moved_cells(kind, PROTOCOLS[protocol], prompt, branches, monkeypatch) >= 10


def test_a_long_cache_has_a_place_for_every_key(monkeypatch):
    """Caches that grow from 254 entries on, past the length turns are computed for at first."""
    ids = random_ids(300, seed=56)
    prompt = Prompt({"input_ids": ids}, torch.zeros(300, dtype=torch.long), 3, None)
    branches = [Branch(policy, budget=n) for n in (254, 8) for policy in reindexing("grow")]
    assert moved_cells("default", Protocol(), prompt, branches, monkeypatch) == len(branches)


@pytest.mark.parametrize(
    "kind", ["dynamic", *map(slow, ("longrope", "default", "yarn", "phi", "cohere"))]
)
def test_a_reindexed_cell_alone_equals_the_cell_among_many(kind, monkeypatch):
    """Other lengths in the batch change nothing, nor does splitting the cells into batches."""
    prompt, branches = make_prompt("llama", seed=52), cells([30, 25, 19, 12, 8])
    # A model that scales by length remembers the longest it has seen: each run has its own.
    together, logits = run_with_logits(
        monkeypatch, Engine(wrap(make(kind))), prompt, branches, TOKENS
    )
    assert len(branches) > 30
    for cell in range(1, len(branches), 2):
        if kind == "dynamic" or cell % 4 == 1:
            engine = Engine(wrap(make(kind)))
            alone, single = run_with_logits(monkeypatch, engine, prompt, [branches[cell]], TOKENS)
            close(single[:, 0], logits[:, cell])
            assert alone[0].token_ids == together[cell].token_ids
    reindexed = [i for i, branch in enumerate(branches) if is_reindexed(branch)]
    engine = Engine(wrap(make(kind)), cells_per_batch=3)
    split = engine.run(prompt, branches, Generation(TOKENS))
    for cell in reindexed:
        assert split[cell].token_ids == together[cell].token_ids


def test_finished_cells_leave_the_reindexed_ones_undisturbed(monkeypatch):
    prompt, branches = make_prompt("llama", seed=53), cells([24, 12, 8])
    engine = Engine(wrap(make("yarn")))
    lengths = stop_some(monkeypatch, engine, prompt, branches, every=4)
    assert len(lengths) > 3


@pytest.mark.parametrize("protocol", ["replay", "paper"])
@pytest.mark.parametrize("kind", ["dynamic", *map(slow, ("phi", "default", "yarn"))])
def test_generate_inside_evict_reindexes_as_the_engine_does(kind, protocol):
    prompt = make_prompt("llama", seed=54)
    branches = [
        Branch(p, budget=n) for p in reindexing("hold") + reindexing("grow") for n in (9, 30)
    ]
    for branch in branches:
        engine = Engine(wrap(make(kind)), Protocol(protocol))
        wanted = engine.run(prompt, [branch], Generation(TOKENS))[0]
        model = wrap(make(kind)).model
        with harness.evict(model, branch.policy, budget=branch.budget, protocol=protocol):
            ids = prompt.inputs["input_ids"]
            found = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
        assert found[0, ids.shape[1] :].tolist() == wanted.token_ids
