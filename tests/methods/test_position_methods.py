"""The methods without scores: random, StreamingLLM and LaCache."""

import dataclasses

import pytest
import torch

import methods
from methods.lacache import block_shape, exact_ladder
from tests.methods.views import random_view


def sets(policy, view, budget):
    return policy.keep(view, budget).flatten(0, 1).tolist()


def test_random_depends_on_seed_layer_head_and_content():
    policy = methods.build("random")
    base = random_view(60, num_layers=4, layer=1)
    drawn = sets(policy, base, 20)
    assert drawn[0] != drawn[1]
    assert sets(methods.build("random", seed=1), base, 20) != drawn
    assert sets(policy, random_view(60, layer=2), 20) != drawn
    assert sets(policy, random_view(60, seed=1), 20) != drawn
    assert sets(policy, random_view(60), 20) == drawn


def test_random_keeps_nested_sets_and_no_favourites():
    policy = methods.build("random")
    counts = torch.zeros(40)
    for seed in range(300):
        small, large = policy.keep_many(random_view(40, kv_heads=1, group=1, seed=seed), [10, 20])
        assert set(small.flatten().tolist()) <= set(large.flatten().tolist())
        counts[small.flatten()] += 1
    # 300 draws of 10 in 40: mean 75, standard deviation 7.5.
    assert counts.min() > 45
    assert counts.max() < 105


def test_streaming_keeps_sinks_and_the_latest():
    policy = methods.build("streaming_llm", sinks=3)
    assert sets(policy, random_view(20), 8)[0] == [0, 1, 2, 15, 16, 17, 18, 19]
    assert sets(policy, random_view(20), 2)[0] == [0, 19]
    assert sets(policy, random_view(20), 1)[0] == [19]
    assert sets(methods.build("streaming_llm", sinks=0), random_view(20), 2)[0] == [18, 19]


def ladder_sets(length, budget, num_layers, **params):
    policy = methods.build("lacache", **params)
    views = [random_view(length, layer=i, num_layers=num_layers) for i in range(num_layers)]
    return [policy.select_many(view, [budget])[0] for view in views]


@pytest.mark.parametrize("num_layers", [2, 3, 4, 5, 28])
def test_the_default_ladder_leaves_no_token_to_no_layer(num_layers):
    # At half the budget one compaction is enough, and the layers cover every position together.
    length = 200
    chosen = ladder_sets(length, 120, num_layers)
    assert {s.fallback for s in chosen} == {None}
    kept = [set(s.positions[0, 0].tolist()) for s in chosen]
    assert set().union(*kept) == set(range(length))
    assert len({frozenset(k) for k in kept}) > 1
    for selection in chosen:
        assert selection.positions[0, 0, :4].tolist() == [0, 1, 2, 3]
        assert selection.window == num_layers


def test_a_budget_without_room_for_a_ladder_says_so():
    # start 4, one token a layer 5, one rung of 1.
    assert ladder_sets(130, 10, 5)[0].fallback is None
    small = ladder_sets(130, 9, 5)[0]
    assert small.fallback == "streaming_llm"
    streaming = methods.build("streaming_llm").keep(random_view(130), 9)
    assert torch.equal(small.positions, streaming)
    assert ladder_sets(130, 60, 1)[0].fallback == "streaming_llm"
    assert ladder_sets(130, 130, 1)[0].fallback is None
    policy = methods.build("lacache")
    assert [policy.fits(n, 5) for n in (9, 10)] == [False, True]


@pytest.mark.parametrize(("span", "overlap", "layers"), [(4, 0, 4), (9, 0, 5), (3, 2, 4)])
def test_a_ladder_that_cannot_shrink_is_refused(span, overlap, layers):
    with pytest.raises(ValueError, match=rf"span={span}.*{layers} layers"):
        ladder_sets(60, 30, layers, span=span, overlap=overlap)


@pytest.mark.parametrize(("overlap", "layers"), [(1, 2), (2, 4), (3, 4)])
def test_an_overlap_as_wide_as_the_default_span_is_refused(overlap, layers):
    with pytest.raises(ValueError, match=rf"overlap={overlap}.*{layers} layers"):
        ladder_sets(60, 30, layers, overlap=overlap)


def test_every_ladder_has_exactly_the_budget():
    generator = torch.Generator().manual_seed(7)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    tried = 0
    while tried < 2000:
        layers = draw(2, 40)
        span = draw(1, layers)
        overlap, start = draw(0, span - 1), draw(0, 16)
        try:
            _, kept = block_shape(layers, span, overlap)
        except ValueError:
            continue
        count = start + layers + kept + draw(0, 60)
        length = count + draw(1, 400)
        layer = draw(0, layers - 1)
        positions = exact_ladder(length, count, layer, layers, span, overlap, start)
        assert len(positions) == count
        assert list(positions) == sorted(set(positions))
        assert positions[:start] == tuple(range(start))
        assert positions[-1] == length - 1
        tried += 1


def test_random_does_not_depend_on_memory_layout_or_rounding():
    """Sums over another layout, or on another machine, differ in the last digits."""
    policy, same = methods.build("random", seed=3), 0
    for seed in range(40):
        view = random_view(61, seed=seed)
        wanted = policy.keep(view, 9)
        turned = view.keys.transpose(-1, -2).contiguous().transpose(-1, -2)
        assert turned.stride() != view.keys.stride()
        moved = dataclasses.replace(view, keys=turned)
        assert torch.equal(policy.keep(moved, 9), wanted)
        nudged = dataclasses.replace(view, keys=view.keys * (1 + 1e-7))
        same += torch.equal(policy.keep(nudged, 9), wanted)
    assert same >= 38
