"""budget=layers: what each layer asks for, against plain float64 arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import methods
from methods.budgets import preferred
from tests.methods.by_hand import attention_rows, by_kv_head, mean, neighbours
from tests.methods.matrix import heads
from tests.methods.test_global import select, views
from tests.methods.views import batched, random_view


def variance(column):
    centre = mean(column)
    return sum((each - centre) ** 2 for each in column) / (len(column) - 1)


def asked(view, window, tau1=1.0, tau2=1.0):
    """H^(1/tau1) V^(1/tau2) over the keys before the window, loop by loop."""
    before = max(0, view.length - window) or view.length
    tables = [[row[:before] for row in table] for table in attention_rows(view, window)]
    entropy = -sum(a * math.log(a + 1e-10) for t in tables for row in t for a in row)
    shift = sum(variance(column) for t in tables for column in zip(*t, strict=True))
    return entropy ** (1 / tau1) * shift ** (1 / tau2)


def shared(wanted, count, room):
    """Shares rounded down; the overflow, then the rest, one by one to layers with room."""
    layers = range(len(wanted))
    counts = [math.floor(w / sum(wanted) * count * len(wanted)) for w in wanted]
    over = [max(0, each - room) for each in counts]
    counts = [min(each, room) for each in counts]
    for rest in (sum(over), None):
        rest = count * len(wanted) - sum(counts) if rest is None else rest
        while rest:
            for layer in [n for n in layers if counts[n] < room]:
                counts[layer] += rest > 0
                rest -= rest > 0
    return counts


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9), st.integers(0, 40), st.integers(0, 40)
)
def test_layers_share_by_what_they_ask_for_and_within_their_room(wanted, count, more):
    room = count + more
    (found,) = preferred(torch.tensor([wanted], dtype=torch.float64), count, room).tolist()
    assert found == shared(wanted, count, room)
    assert sum(found) == count * len(wanted)


def test_where_nobody_asks_all_get_as_much():
    assert preferred(torch.zeros(2, 3), 4, 9).tolist() == [[4, 4, 4]] * 2


@pytest.mark.parametrize(("name", "taus"), [("cake", (1.6, 0.4)), ("snapkv", (1, 1))])
@pytest.mark.parametrize("protect", ["none", "text", "boundary"])
@pytest.mark.parametrize("budget", [1, 2, 20, 30, 59, 70])
def test_each_layer_keeps_its_share_and_the_best_of_it(name, taus, protect, budget):
    """Scores and protected tokens are those of the mean budget."""
    layers = views(60, (10, 55))
    params = {"tau1": taus[0], "tau2": taus[1]} if name == "cake" else {}
    params |= {"window": 8, "protect": protect}
    policy = methods.build(name, budget="layers", **params)
    usual = methods.build(name, budget="uniform", **params)
    rated = [policy.rate(view, [budget]) for view in layers]
    wanted = [asked(view, 8, *taus) for view in layers]
    assert [float(one.preference) for one in rated] == pytest.approx(wanted, rel=1e-4)
    alone = [usual.select_many(view, [budget])[0] for view in layers]
    count = alone[0].positions.shape[-1]
    fixed = int(usual.score(layers[0], budget)[0, 0].isposinf().sum()) or 1
    counts = [fixed + n for n in shared(wanted, count - fixed, 60 - fixed)]
    (found,) = zip(*policy.select_layers(rated), strict=True)
    for view, one, chosen, own in zip(layers, alone, found, counts, strict=True):
        scores = usual.score(view, budget)[0].tolist()
        best = [sorted(range(60), key=lambda j, row=row: (-row[j], j))[:own] for row in scores]
        assert heads(chosen)[0] == [sorted(head) for head in best]
        assert chosen.counts.tolist() == [[own] * len(best)]
        assert (chosen.window, chosen.fallback) == (one.window, one.fallback)
        assert (chosen.peak is None) == (count == 60)


@pytest.mark.parametrize("group", ["mean", "max"])
def test_cake_scores_mean_and_variance_of_the_windows_rows(group):
    view = random_view(29, kv_heads=2, group=3, seed=4, sharpness=2.0)
    one = [
        [mean(column) + 50 * variance(column) for column in zip(*table, strict=True)]
        for table in attention_rows(view, 7)
    ]
    reduced = by_kv_head(view, one, mean if group == "mean" else max)
    wanted = [[mean(neighbours(row[:22], j, 2, kind="avg")) for j in range(22)] for row in reduced]
    policy = methods.build("cake", window=7, gamma=50, group=group, budget="uniform")
    for ours, theirs in zip(policy.score(view, 15)[0].tolist(), wanted, strict=True):
        assert ours[:22] == pytest.approx(theirs, rel=1e-4)
        assert ours[22:] == [math.inf] * 7


def test_a_prompt_of_one_query_or_no_more_than_the_window_is_no_trouble():
    policy = methods.build("cake", window=8)
    for length in (1, 2, 8, 9):
        for budget in (1, 2, length):
            layers = [random_view(length, layer=n, num_layers=3, seed=n) for n in range(3)]
            found = [each for (each,) in select(policy, layers, [budget])]
            assert sum(int(each.counts.sum()) for each in found) == 6 * min(budget, length)


def test_prompts_of_a_batch_do_not_touch_each_other():
    policy = methods.build("cake", window=8)
    one, two = views(41), views(41, seed=9)
    joined = [batched(a, b) for a, b in zip(one, two, strict=True)]
    for item, alone in enumerate((one, two)):
        found = [heads(each)[item] for (each,) in select(policy, joined, [12])]
        assert found == [heads(each)[0] for (each,) in select(policy, alone, [12])]


def test_a_layer_by_itself_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="cake: budget=layers chooses from all") as error:
        methods.build("cake").keep(random_view(), 9)
    assert "\n" not in str(error.value)
