"""R-KV against its formula, term by term in plain float64, on prompts and while decoding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import methods
from tests.methods.by_hand import redundancy_aware
from tests.methods.views import random_view

LENGTH, WINDOW, HEADS, GROUP = 41, 6, 2, 2


def of_head(view, head, places, readers):
    keys = view.keys[0, head].double()[places].tolist()
    queries = (view.queries[0].double() * view.scaling)[head * GROUP : (head + 1) * GROUP]
    return keys, queries[:, readers].tolist(), places, readers


@pytest.mark.parametrize(
    ("budget", "protected", "behind", "given"),
    [
        (20, WINDOW, 0, {}),
        (20, WINDOW, 0, {"mix": 0.8, "kernel": 3, "threshold": 0.1}),
        (5, 2, 0, {"mix": 0.9, "threshold": 0.3}),  # some queries are older than what competes
        (20, WINDOW, 9, {"mix": 0.9, "window_anchor": "question"}),
    ],
)
def test_scores_are_those_of_the_formula(budget, protected, behind, given):
    drawn = random_view(LENGTH, HEADS, GROUP, seed=5, sharpness=2.0)
    view = replace(drawn, suffix=behind)
    policy = methods.build("rkv", window=WINDOW, **given)
    scores, past = policy.score(view, budget)[0], LENGTH - protected
    assert bool(scores[:, past:].isinf().all())
    places, end = list(range(LENGTH)), LENGTH - behind
    for head in range(HEADS):
        how = (policy.mix, policy.threshold, policy.kernel)
        own = of_head(view, head, places, list(range(end - WINDOW, end)))
        wanted = redundancy_aware(*own, past, *how)
        assert scores[head, :past].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("count", "drop"), [(25, 9), (25, 1), (9, 5), (3, 2)])
def test_standing_is_that_of_the_formula_over_what_is_left(count, drop):
    """Entries lie in any order, those of a shorter head end in padding; small caches have queries
    that are older than some entries, or than all of them.
    """
    view = random_view(LENGTH, HEADS, GROUP, seed=6, sharpness=2.0)
    policy = methods.build("rkv", window=WINDOW, mix=0.5, threshold=0.2, buffer=drop + 1)
    draw = torch.Generator().manual_seed(count)
    held = [
        sorted([*torch.randperm(LENGTH - 1, generator=draw)[: count - 1 - head].tolist(), 40])
        for head in range(HEADS)
    ]
    order = [torch.randperm(len(own), generator=draw).tolist() for own in held]
    shuffled = [[own[i] for i in index] for own, index in zip(held, order, strict=True)]
    positions = torch.tensor([own + [-1] * (count - len(own)) for own in shuffled])[None]
    index = positions.clamp_min(0)[..., None].expand(-1, -1, -1, view.keys.shape[-1])
    keys = view.keys.gather(2, index).masked_fill(positions[..., None] < 0, torch.nan)
    step = methods.Step(
        held=[methods.Held(30, count - drop, count - drop, 1)], positions=positions,
        budgets=torch.tensor([[len(own) - drop for own in held]]), seen=LENGTH, new=1, layer=0,
        num_layers=1, keys=keys, queries=view.queries[:, :, -WINDOW:] * view.scaling,
    )  # fmt: skip
    standing = policy.standing(step, None)[0]
    gone = policy.drop(step, None, drop)[0].tolist()
    readers = list(range(LENGTH - WINDOW, LENGTH))
    for head, own in enumerate(held):
        kept = len(own) - drop
        window = WINDOW if kept > WINDOW else kept // 2
        past = sum(place < LENGTH - window for place in own)
        how = (policy.mix, policy.threshold, policy.kernel)
        wanted = redundancy_aware(*of_head(view, head, own, readers), past, *how)
        found = dict(zip(shuffled[head], standing[head].tolist(), strict=False))
        assert [found[place] for place in own[:past]] == pytest.approx(wanted, rel=1e-4, abs=1e-7)
        assert all(math.isinf(found[place]) for place in own[past:])
        lowest = sorted(range(past), key=lambda i: wanted[i])[:drop]
        assert {shuffled[head][i] for i in gone[head]} == {own[i] for i in lowest}


def test_a_query_of_no_numbers_is_seen_in_the_peak():
    view = random_view(LENGTH, HEADS, GROUP, seed=5)
    policy = methods.build("rkv", window=WINDOW)
    assert math.isfinite(policy.select_many(view, [20])[0].peak)
    spoilt = view.queries.clone()
    spoilt[0, 1, -2, 0] = math.nan
    assert not math.isfinite(policy.select_many(replace(view, queries=spoilt), [20])[0].peak)


def test_of_many_keys_alike_the_newest_stays():
    """Attention is even, so redundancy alone decides: of 30 copies the newest stays."""
    drawn = random_view(60, 1, 1, dim=32, seed=7)
    keys = drawn.keys.clone()
    copies = list(range(10, 40))
    keys[:, :, copies] = drawn.keys[:, :, 10:11]
    view = replace(drawn, keys=keys, queries=torch.zeros_like(drawn.queries))
    kept = methods.build("rkv", window=4).keep(view, 31)[0, 0].tolist()
    assert {*copies} & {*kept} == {39}


def test_a_long_prompt_is_compared_part_by_part(monkeypatch):
    view = random_view(97, HEADS, GROUP, seed=8)
    policy = methods.build("rkv", window=WINDOW)
    whole = policy.score(view, 30)
    monkeypatch.setattr("methods.rkv.PART_BYTES", 16 * HEADS * 97 * 10)
    torch.testing.assert_close(policy.score(view, 30), whole)


def test_it_recalls_queries_unless_it_grows():
    view = random_view(LENGTH, HEADS, GROUP)
    for decode, recalled in (("hold", WINDOW), ("buffer", WINDOW), ("grow", 0)):
        policy = methods.build("rkv", window=WINDOW, decode=decode)
        found = policy.select_many(view, [9, 20])[1].queries
        assert policy.recalls == recalled
        if not recalled:
            assert found is None
        else:
            torch.testing.assert_close(found, view.queries[:, :, -WINDOW:] * view.scaling)
