"""A rule gives the standing that its policy gives."""

from __future__ import annotations

import pytest
import torch

import methods
from methods import Due, Held, Step, kernels

TILE, BLOCKS, HEADS, GROUP, SEEN = 16, 3, 2, 2, 90
POLICIES = [
    ("streaming_llm", {}),
    ("streaming_llm", {"sinks": 30}),
    ("h2o", {}),
    ("h2o", {"recent": 5, "group": "sum"}),
    ("h2o", {"recent": 60}),
    ("tova", {}),
    ("tova", {"protect_last": True}),
    ("lacache", {"span": 1, "start": 4}),
]
WITHOUT = [
    ("h2o", {"average": "visible_mean"}),
    ("h2o", {"group": "max"}),
    ("tova", {"budget": "adaptive"}),
    ("random", {"decode": "hold"}),
]


@pytest.mark.parametrize("new", [1, 2])
@pytest.mark.parametrize(("name", "given"), POLICIES)
def test_a_rule_drops_what_the_policy_drops(name, given, new):
    policy = methods.build(name, **given)
    cells, layers = 3, 1  # on one layer no ladder fits
    told = [Held(80, 38, 38, 1)] * cells
    draw = torch.Generator().manual_seed(3)
    places = torch.rand(cells, 1, SEEN, generator=draw).argsort(-1)[..., : TILE * BLOCKS - 9]
    places = places.expand(-1, HEADS, -1)
    pool = torch.full((cells * HEADS, BLOCKS * TILE), -1)
    pool[:, : places.shape[-1]] = places.flatten(0, 1)
    weights = torch.rand(cells * HEADS * BLOCKS, GROUP * new, TILE, generator=draw)
    weights[pool.view(-1, TILE)[:, None].expand_as(weights) < 0] = 0.0
    carried = torch.rand(cells * HEADS * BLOCKS, TILE, generator=draw)
    budgets = torch.full((cells, HEADS), places.shape[-1] - 1)
    rows = weights.view(cells, HEADS, BLOCKS, GROUP, new, TILE).permute(0, 1, 3, 4, 2, 5)
    step = Step(
        held=told, positions=pool.view(cells, HEADS, -1), budgets=budgets, seen=SEEN, new=new,
        layer=0, num_layers=layers, attention=rows.reshape(cells, HEADS * GROUP, new, -1),
        carried=carried.view(cells, HEADS, -1),
    )  # fmt: skip
    fresh = policy.carry(step)
    wanted = policy.drop(step, fresh, 1)
    rule = policy.rule(Due(told, budgets, SEEN, 0, layers, budgets.device))
    assert rule is not None
    told = torch.stack([rule.by, rule.first, rule.last], -1)
    table = torch.arange(cells * HEADS * BLOCKS, dtype=torch.int32).view(-1, BLOCKS)
    counts = torch.full((cells * HEADS,), places.shape[-1], dtype=torch.int32)
    found = kernels.lowest_entries(
        pool.view(-1, TILE), weights, carried, table, counts, torch.arange(cells * HEADS),
        told.flatten(0, 1), HEADS, new, SEEN,
    )  # fmt: skip
    assert torch.equal(found.view(cells, HEADS, 1), wanted)
    if fresh is not None:
        entries = pool.view(cells, HEADS, -1) >= 0
        torch.testing.assert_close(carried.view(cells, HEADS, -1)[entries], fresh[entries])


@pytest.mark.parametrize(("name", "given"), WITHOUT)
def test_what_is_no_rule_is_left_to_the_policy(name, given):
    budgets = torch.full((1, HEADS), 20)
    due = Due([Held(80, 20, 20, 1)], budgets, SEEN, 0, 4, budgets.device)
    assert methods.build(name, **given).rule(due) is None


def test_the_place_that_a_ladder_drops():
    policy, layers, seen = methods.build("lacache", span=2, start=2), 4, 81
    told = [Held(80, kept, kept, 1) for kept in (30, 39)]
    assert [policy.evictions(each, 1, seen, layers) for each in told] == [1, 1]
    for layer in range(layers):
        gone = [policy.dropped(each, seen, layers)[layer][0] for each in told]
        places = torch.stack([torch.arange(TILE) + max(3, place - 9) for place in gone])
        pool = places[:, None].expand(-1, HEADS, -1).flip(-1)
        budgets = torch.full((2, HEADS), TILE - 1)
        step = Step(
            held=told, positions=pool, budgets=budgets, seen=seen, new=1, layer=layer,
            num_layers=layers,
        )  # fmt: skip
        rule = policy.rule(Due(told, budgets, seen, layer, layers, budgets.device))
        rules = torch.stack([rule.by, rule.first, rule.last], -1)
        table, counts = torch.arange(4, dtype=torch.int32)[:, None], torch.full((4,), TILE)
        found = kernels.lowest_entries(
            pool.reshape(-1, TILE), None, None, table, counts.int(), torch.arange(4),
            rules.flatten(0, 1), HEADS, 1, seen, rule.given,
        )  # fmt: skip
        assert torch.equal(found.view(2, HEADS, 1), policy.drop(step, None, 1))
