"""protect=boundary: the first and the last of the prompt stay, in the prompt and while decoding."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import methods
from methods.scoring import ScoringPolicy
from tests.methods import matrix
from tests.methods.matrix import EVERY, MATRIX, build, heads
from tests.methods.test_decoding import Simulation
from tests.methods.views import random_view

ROWS = [row for row in MATRIX if "protect" in methods.parameters(EVERY[row[0]][0])]
NAMES = [name for name in matrix.NAMES if "protect" in methods.parameters(name)]
HOLDING = [row for row in ROWS if "decode" in methods.parameters(EVERY[row[0]][0])]


def ends(count, share="0.1"):
    """Tokens at each end: the share, at least one, both within the count."""
    wanted = max(1, math.floor(Fraction(share) * count))
    while 2 * wanted > count:
        wanted -= 1
    return wanted


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(ROWS),
    st.integers(1, 60),
    st.integers(1, 70),
    st.sampled_from(["0.1", "0.29", "0.5"]),
)
def test_both_ends_are_kept_within_the_budget(row, length, budget, share):
    policy = build(row, protect="boundary", boundary_share=float(share))
    total = 0
    for layer in range(3):
        view = random_view(length, seed=layer, layer=layer, num_layers=3)
        selection = policy.select_many(view, [budget])[0]
        kept = heads(selection)[0]
        total += sum(map(len, kept))
        own = ends(sum(map(len, kept)) // 2, share)  # of what a head of the layer keeps on average
        for head in kept:
            assert {*range(own), *range(length - own, length)} <= set(head)
            if row[1] == "uniform":
                assert len(head) == min(budget, length)
        assert selection.fallback in (None, "uniform", "streaming_llm")  # the last of lagkv
    assert total == 3 * 2 * min(budget, length)


@pytest.mark.parametrize("name", [name for name in NAMES if "critical" not in name])
@pytest.mark.parametrize("budget", [10, 20, 33])
def test_between_the_ends_a_method_chooses_as_it_does_without(name, budget):
    """Where its own window takes in the protected end, not one score changes."""
    view = random_view(41, group=2, sharpness=2.0)
    params = {"window": 4} if "window" in methods.parameters(name) else {}
    params |= {"pool": "max"} if name == "snapkv" else {}
    plain, bounded = (methods.build(name, **params, protect=p) for p in ("none", "boundary"))
    own = ends(budget)
    window = max(bounded.select_many(view, [budget])[0].window, own)
    scores = plain.score(view, budget)[0].tolist()
    for row, head in zip(scores, bounded.keep(view, budget)[0].tolist(), strict=True):
        must = {*range(own), *range(41 - window, 41)}
        free = [place for place in range(41) if place not in must]
        best = sorted(free, key=lambda place: (-row[place], place))[: budget - len(must)]
        assert head == sorted(must | set(best))


def test_criticalkv_stages_share_what_the_ends_leave():
    view = random_view(41, kv_heads=1, group=1, seed=3, sharpness=2.0)
    critical = methods.build(
        "criticalkv", window=4, kernel=1, first_stage=1, protect="boundary", boundary_share=0.2
    )
    snap = methods.build("snapkv", window=4, kernel=1, protect="boundary", boundary_share=0.2)
    assert torch.equal(critical.keep(view, 20), snap.keep(view, 20))  # the first stage takes all
    halves = methods.build("criticalkv", window=4, kernel=1, protect="boundary", boundary_share=0.2)
    tops = []
    for policy in (halves, snap):
        score = policy.score(view, 20)[0, 0]
        assert score.isinf().nonzero().flatten().tolist() == [0, 1, 2, 3, 37, 38, 39, 40]
        tops.append(score.masked_fill(score.isinf(), -1).topk(6).indices.tolist())
    assert set(tops[0]) == set(tops[1])  # half of 20 - 4 - 4


@pytest.mark.parametrize(
    ("budget", "first", "last"),
    [
        (1, 0, 0),
        (2, 1, 1),
        (3, 1, 1),
        (8, 2, 4),  # as without, half of a budget that the window would fill
        (12, 3, 6),
        (13, 3, 10),  # not room for both: the window gives way
        (15, 3, 12),
        (16, 4, 12),
        (40, 10, 12),
    ],
)
def test_a_window_gives_way_to_the_first_tokens(budget, first, last):
    policy = methods.build("snapkv", window=12, protect="boundary", boundary_share=0.25)
    assert policy.select_many(random_view(), [budget])[0].window == last
    spared = [*range(first), *range(41 - last, 41)]
    infinite = policy.score(random_view(), budget).isposinf()
    assert infinite.tolist() == [[[place in spared for place in range(41)]] * 2]


def test_ends_beyond_a_window_are_kept_whole():
    policy = methods.build("snapkv", window=3, protect="boundary", boundary_share=0.25)
    assert policy.select_many(random_view(), [40])[0].window == 10


@pytest.mark.parametrize(
    ("budget", "first", "last"),
    [(1, 0, 0), (5, 2, 2), (8, 4, 4), (9, 5, 4), (10, 5, 5), (40, 20, 20)],
)
def test_sinks_give_way_to_the_last_tokens(budget, first, last):
    policy = methods.build("expected_attention", sinks=5, protect="boundary", boundary_share=0.5)
    assert policy.select_many(random_view(), [budget])[0].window == last
    spared = [*range(first), *range(41 - last, 41)]
    infinite = policy.score(random_view(), budget).isposinf()
    assert infinite.tolist() == [[[place in spared for place in range(41)]] * 2]


def test_each_layer_of_a_pyramid_protects_a_share_of_its_own_budget():
    policy = methods.build("random", budget="pyramid", protect="boundary", boundary_share=0.2)
    views = [random_view(200, layer=layer, num_layers=5) for layer in range(5)]
    counts = [policy.keep(view, 40).shape[-1] for view in views]
    assert len(set(counts)) == 5
    windows = [policy.select_many(view, [40])[0].window for view in views]
    assert windows == [ends(count, "0.2") for count in counts]


@pytest.mark.parametrize("row", HOLDING, ids="-".join)
@pytest.mark.parametrize("share", ["0.1", "0.25"])
def test_both_ends_of_the_prompt_outlive_all_else(row, share):
    cell = Simulation(row, 41, 16, protect="boundary", boundary_share=float(share))
    start = [len(head) for head in cell.kept]
    own = ends(round(sum(start) / len(start)), share)
    must = {*range(own), *range(41 - own, 41)}
    for _ in range(60):
        cell.step()
        for head, first in zip(cell.kept, start, strict=True):
            assert must <= set(head)
            assert len(head) == first
    assert all(max(head) >= 60 for head in cell.kept)  # answers take the places of the rest


@pytest.mark.parametrize("name", ["h2o", "tova", "random"])
def test_cells_of_several_budgets_and_prompts_protect_their_own_ends(name):
    policy = methods.build(name, decode="hold", protect="boundary", boundary_share=0.25)
    positions = torch.arange(30).repeat(3, 2, 1)
    held = [methods.Held(*each, 1) for each in ((20, 8, 8), (24, 16, 16), (29, 29, 40))]
    step = methods.Step(
        held=held, positions=positions, budgets=torch.full((3, 2), 29), seen=30, new=1, layer=0,
        num_layers=1, attention=torch.rand(3, 4, 1, 30), carried=torch.rand(3, 2, 30),
    )  # fmt: skip
    spared = policy.ranked(step, step.carried).isinf()
    for cell, (prompt, own) in enumerate(((20, 2), (24, 4), (29, 7))):
        wanted = [p < own or prompt - own <= p < prompt for p in range(30)]
        assert spared[cell].tolist() == [wanted] * 2


@pytest.mark.parametrize("name", ["streaming_llm", "lacache", "full"])
def test_methods_without_scores_refuse_it(name):
    with pytest.raises(ValueError, match=f"{name} has no parameter 'protect'") as error:
        methods.build(name, protect="boundary")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0, 0.51, -0.1, math.nan, True, "0.1", None])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="snapkv: boundary_share="):
        methods.build("snapkv", protect="boundary", boundary_share=share)


def test_a_share_changes_nothing_where_ends_are_not_protected():
    view = random_view()
    for name in NAMES:
        usual, other = (methods.build(name, boundary_share=share) for share in (0.1, 0.4))
        assert torch.equal(usual.keep(view, 12), other.keep(view, 12))


def test_variants_with_and_without_it_share_a_measurement(monkeypatch):
    view, calls = random_view(), []
    kind = type(methods.build("restkv"))
    measure = kind._importance
    monkeypatch.setattr(kind, "_importance", lambda *a: calls.append(a) or measure(*a))
    for share in (0.1, 0.3):
        policy = methods.build("restkv", window=8, protect="boundary", boundary_share=share)
        policy.keep(view, 20)
    methods.build("restkv", window=8).keep(view, 20)
    assert len(calls) == 1


def test_a_policy_of_ones_own_has_it_too():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Newest(ScoringPolicy):
        name = "newest"

        def measure(self, view):
            place = torch.arange(view.length, dtype=torch.float32)
            return place.expand(view.batch, view.kv_heads, -1)

    kept = Newest(protect="boundary", boundary_share=0.2).keep(random_view(), 10)
    assert kept[0].tolist() == [[0, 1, *range(33, 41)]] * 2
