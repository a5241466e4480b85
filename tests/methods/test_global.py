"""budget=global: the best tokens of all layers and heads, against a plain loop over all of them."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import random
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import methods
from methods.budgets import pooled
from tests.methods.matrix import VARIANTS, heads
from tests.methods.views import batched, random_view

ROWS = (
    *("random", "snapkv", "snapkv_max_odd", "h2o", "h2o_visible", "h2o_official"),
    *("tova", "tova_last", "restkv_before", "post_vision", "post_vision_max"),
    *("chunkkv", "chunkkv_own"),
)
HEADS = (2, 1, 3)  # of each layer


def build(row, **more):
    name, params = VARIANTS[row]
    return methods.build(name, **params, **more)


def views(length, images=None, seed=0):
    """Layers with other numbers of heads, the later ones more peaked."""
    found = [
        random_view(length, kv_heads, 2, seed=seed + layer, sharpness=1.0 + layer, layer=layer,
                    num_layers=len(HEADS))
        for layer, kv_heads in enumerate(HEADS)
    ]  # fmt: skip
    if images is None:
        return found
    modality = torch.tensor([[int(place in range(*images)) for place in range(length)]])
    return [dataclasses.replace(view, modality=modality) for view in found]


def select(policy, layers, budgets):
    return policy.select_layers([policy.rate(view, budgets) for view in layers])


def by_hand(scores, total):
    """Positions [layer][head] of the best `total` of scores [layer][head][L].

    What is infinite and the best of each head come first; of equals those that rank higher in their
    head, then those of the first layers and heads.
    """
    entries, flat = [], [row for layer in scores for row in layer]
    for head, row in enumerate(flat):
        order = sorted(range(len(row)), key=lambda place: (-row[place], place))
        for rank, place in enumerate(order):
            score = math.inf if rank == 0 else row[place]
            entries.append((-score, rank, head, place))
    kept = [[] for _ in flat]
    for _, _, head, place in sorted(entries)[:total]:
        kept[head].append(place)
    each = iter(kept)
    return [[sorted(next(each)) for _ in layer] for layer in scores]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.sampled_from(ROWS), st.integers(1, 50), st.integers(1, 60), st.integers(0, 10**6),
    st.sampled_from(["none", "text", "boundary"]),
)  # fmt: skip
def test_the_best_of_all_layers_and_heads_stay(row, length, budget, seed, protect):
    layers = views(length, (2, max(2, length - 3)), seed)
    usual, policy = build(row, protect=protect), build(row, protect=protect, budget="global")
    (found,) = zip(*select(policy, layers, [budget]), strict=True)
    alone = [usual.select_many(view, [budget])[0] for view in layers]
    count = alone[0].positions.shape[-1]  # more than the budget where there is more text
    wanted = by_hand([usual.score(view, budget)[0].tolist() for view in layers], 6 * count)
    assert [heads(each)[0] for each in found] == wanted
    assert [each.counts.tolist() for each in found] == [[[len(h) for h in w]] for w in wanted]
    assert sum(int(each.counts.sum()) for each in found) == 6 * count
    for each, one, view in zip(found, alone, layers, strict=True):
        assert (each.window, each.fallback) == (one.window, one.fallback)
        infinite = usual.score(view, budget)[0].isposinf()
        for head, must in zip(heads(each)[0], infinite, strict=True):
            assert {*must.nonzero().flatten().tolist()} <= set(head)
            assert head


@pytest.mark.parametrize("row", ROWS)
def test_many_budgets_equal_one_by_one(row):
    policy, wanted = build(row, budget="global"), [17, 3, 41, 8, 1, 17, 60]
    together = select(policy, views(41), wanted)
    for index, budget in enumerate(wanted):
        alone = select(policy, views(41), [budget])
        for layer, kept in enumerate(alone):
            assert torch.equal(together[layer][index].positions, kept[0].positions)
            assert together[layer][index].peak == kept[0].peak
            assert (kept[0].peak is None) == (budget >= 41)


@pytest.mark.parametrize("row", ["snapkv", "h2o_visible"])
def test_prompts_of_a_batch_do_not_touch_each_other(row):
    policy = build(row, budget="global")
    one, two = views(41), views(41, seed=9)
    joined = [batched(a, b) for a, b in zip(one, two, strict=True)]
    for item, alone in enumerate((one, two)):
        found = [heads(each)[item] for (each,) in select(policy, joined, [12])]
        assert found == [heads(each)[0] for (each,) in select(policy, alone, [12])]


def test_equal_scores_are_taken_in_turn():
    assert pooled(torch.ones(1, 3, 10), 4).tolist() == [[4, 4, 4]]
    assert pooled(torch.tensor([[[5.0, 1, 1], [1, 1, 0], [1, 0, 0]]]), 2).tolist() == [[3, 2, 1]]
    assert pooled(torch.tensor([[[9.0, 8, 7], [1, 0, 0]]]), 2).tolist() == [[3, 1]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(0, 12), st.booleans())
def test_what_goes_across_layers_is_what_a_loop_over_all_of_them_lets_go(seed, kept, drops, ties):
    """Cells of different totals, heads of different lengths in any order, some entries spared."""
    rng = random.Random(seed)
    cells = []  # [cell][layer][head] {place: standing}
    for more in (0, 3):
        total = len(HEADS) * 2 * (kept + drops + more)  # two heads a layer on average
        cell = [[{} for _ in range(heads)] for heads in HEADS]
        flat = [head for layer in cell for head in layer]
        for number in range(total):  # a new place each, so that none comes twice in a head
            head = flat[number] if number < len(flat) else rng.choice(flat)
            worth = rng.choice([-1.0, 0.0]) if ties else rng.gauss(0, 1)
            head[rng.randint(0, 10**6) * total + number] = worth
        for head in rng.sample(flat, 2):
            head[max(head)] = math.inf
        cells.append(cell)
    standing, positions = [], []
    for layer, number in enumerate(HEADS):
        width = max(len(head) for cell in cells for head in cell[layer]) + layer
        places = torch.full((2, number, width), -1)
        worth = torch.full((2, number, width), math.nan)
        for cell, head in itertools.product(range(2), range(number)):
            own = [*cells[cell][layer][head].items()]
            rng.shuffle(own)
            for slot, (place, value) in zip(rng.sample(range(width), len(own)), own, strict=True):
                places[cell, head, slot], worth[cell, head, slot] = place, value
        standing.append(worth)
        positions.append(places)
    found = methods.victims_across(standing, positions, drops)
    for cell, course in enumerate(cells):
        ordered = [[sorted(head) for head in layer] for layer in course]
        rows = [[[head[p] for p in sorted(head)] for head in layer] for layer in course]
        stays = by_hand(rows, 6 * (kept + (0, 3)[cell]))
        for layer, (order, numbers) in enumerate(found):
            for head, places in enumerate(ordered[layer]):
                gone = [i for i in order[cell, head].tolist() if i >= 0]
                left = {*places} - {positions[layer][cell, head, i].item() for i in gone}
                assert left == {places[i] for i in stays[layer][head]}
                assert left
                assert len(gone) == numbers[cell, head] == len(places) - len(left)


def test_layers_that_know_more_keep_less_of_the_rest():
    """Attention that is spread evenly needs all tokens; that of one token needs one."""
    flat, peaked = (random_view(60, layer=layer, num_layers=2) for layer in (0, 1))
    flat = dataclasses.replace(flat, queries=flat.queries * 0)
    peaked = dataclasses.replace(peaked, queries=peaked.queries * 100)
    policy = methods.build("snapkv", window=8, kernel=1, budget="global")
    few, many = (int(each.counts.sum()) for (each,) in select(policy, [peaked, flat], [30]))
    assert few + many == 2 * 2 * 30
    assert few < many


@pytest.mark.parametrize("row", ROWS)
def test_a_rating_holds_neither_queries_nor_keys(row):
    """A model's layers wait together: what each holds is its scores."""
    view = random_view(41, num_layers=3)
    held = [weakref.ref(part) for part in (view.queries, view.keys, view.values)]
    policy = build(row, budget="global")
    rated = policy.rate(view, [9, 20])
    size = 2 * 41 * 4  # of a score for each token, however many plans share it
    assert rated.scored.scores.untyped_storage().nbytes() <= len(rated.plans) * size
    if rated.remembered is not None:
        assert rated.remembered.untyped_storage().nbytes() <= size
    del view
    gc.collect()
    assert [each() for each in held] == [None] * 3


def test_a_layer_by_itself_is_refused_in_one_sentence():
    policy = methods.build("snapkv", window=8, budget="global")
    for ask in (policy.keep, lambda view, n: policy.select_many(view, [n])):
        with pytest.raises(ValueError, match="snapkv: budget=global chooses from all") as error:
            ask(random_view(), 9)
        assert "\n" not in str(error.value)
    alone = random_view(layer=0, num_layers=1)
    kept = heads(policy.select_many(alone, [9])[0])[0]
    assert sum(map(len, kept)) == 18
    assert policy.select_many(alone, []) == []


@pytest.mark.parametrize(
    ("name", "params", "remedy"),
    [
        ("keydiff", {}, "one unit."),
        ("criticalkv", {}, "one unit."),
        ("knorm", {}, "one unit."),
        ("lagkv", {}, "one unit."),
        ("mixkv", {}, "one unit."),
        ("expected_attention", {}, "one unit."),
        ("post_vision", {"shared": True}, "or shared=false."),
        ("snapkv", {"value_norm": True}, "or value_norm=false."),
        ("restkv", {}, "or normalize=true with official=false."),
        ("restkv", {"group": "joint"}, "or normalize=true"),
        ("restkv", {"normalize": True, "official": True}, "or normalize=true"),
    ],
)
def test_scores_in_the_unit_of_their_layer_are_refused(name, params, remedy):
    with pytest.raises(ValueError, match=f"{name}: budget='global' is not allowed") as error:
        methods.build(name, **params, budget="global")
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)


def test_restkv_as_a_share_of_the_output_is_taken():
    """Values and projection of one layer, made ten times as large, change nothing."""
    policy = methods.build("restkv", window=8, normalize=True, budget="global")
    layers = views(41)
    large = dataclasses.replace(
        layers[1], values=layers[1].values * 10, output_weight=layers[1].output_weight * 10
    )
    usual = select(policy, layers, [15])
    scaled = select(policy, [layers[0], large, layers[2]], [15])
    assert [heads(each) for (each,) in usual] == [heads(each) for (each,) in scaled]


@pytest.mark.parametrize("row", ["chunkkv", "chunkkv_own"])
@pytest.mark.parametrize("budget", [13, 21, 30])
def test_chunks_stay_whole_but_for_the_one_that_the_budget_cuts(row, budget):
    policy = build(row, budget="global")
    found = [each for (each,) in select(policy, views(60, seed=3), [budget])]
    past, cut = 60 - found[0].window, []
    for layer, selection in enumerate(found):
        for place, head in enumerate(heads(selection)[0]):
            for first in range(0, past, policy.chunk):
                chunk = {*range(first, min(first + policy.chunk, past))}
                if 0 < len(chunk & {*head}) < len(chunk):
                    cut.append((layer, first) if policy.shared else (layer, place, first))
    assert len({*cut}) <= 1
