"""The methods without scores: random, StreamingLLM and LaCache."""

import dataclasses

import pytest
import torch

import methods
from methods import ladder
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


def draw_ladders(count, seed):
    """Random ladders with a capacity that fits: (ladder, capacity, draw)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    while count:
        layers = draw(2, 40)
        span = draw(1, layers)
        overlap, start = draw(0, span - 1), draw(0, 16)
        try:
            shape = ladder.build(layers, span, overlap, start)
        except ValueError:
            continue
        count -= 1
        yield shape, start + layers + shape.kept + draw(0, 60), draw


def test_every_ladder_has_exactly_the_budget():
    for shape, count, draw in draw_ladders(2000, seed=7):
        length = count + draw(1, 400)
        positions = ladder.select(shape, length, count, draw(0, shape.num_layers - 1))
        assert len(positions) == count
        assert list(positions) == sorted(set(positions))
        assert positions[: shape.start] == tuple(range(shape.start))
        assert positions[-1] == length - 1


def test_a_climbing_ladder_never_exceeds_its_capacity_nor_repeats_a_token():
    short = 0
    for shape, kept, draw in draw_ladders(150, seed=8):
        prompt, tail = kept + draw(0, 200), draw(0, 80)
        capacity = kept + draw(0, 1) * draw(0, 20)
        climb = ladder.Climb(shape, prompt, kept, capacity, tail)
        caches = [list(ladder.select(shape, prompt, kept, i)) for i in range(shape.num_layers)]
        past = prompt
        for seen in range(prompt + max(1, tail), prompt + tail + 60):
            dropped = climb.evicted(seen)
            before = len(caches[0]) + seen - past
            for cache, gone in zip(caches, dropped, strict=True):
                cache.extend(range(past, seen))
                assert len(set(gone)) == len(gone)
                for position in gone:
                    cache.remove(position)
                assert cache[: shape.start] == list(range(shape.start))
                assert cache[-1] == seen - 1
            assert {len(cache) for cache in caches} == {before - len(dropped[0])}
            assert len(caches[0]) <= capacity
            # Nothing goes while there is room, and blocks shrink only until there is.
            assert before > capacity or not dropped[0]
            short = max(short, capacity - len(caches[0]) if dropped[0] else 0)
            past = seen
    assert short > 0


def hold(policy, held, steps, num_layers, order=None):
    """Positions of each cell on each layer after each step, as an engine would evict them."""
    caches = [[list(range(h.prompt)) for h in held] for _ in range(num_layers)]
    for layer, cells in enumerate(caches):
        view = random_view(held[0].prompt, kv_heads=1, group=1, layer=layer, num_layers=num_layers)
        cells[:] = [policy.keep(view, h.kept)[0, 0].tolist() for h in held]
    seen, history = held[0].prompt, []
    grown = [[0] * len(held) for _ in range(num_layers)]
    for step in range(steps):
        new = held[0].tail if step == 0 and held[0].tail else 1
        seen += new
        for layer, cells in enumerate(caches):
            counts = []
            for i, h in enumerate(held):
                cells[i] += range(seen - new, seen)
                grown[layer][i] += new
                counts.append(policy.evictions(h, grown[layer][i], seen, num_layers))
                grown[layer][i] -= counts[-1]
            for count in set(counts) - {0}:
                some = [i for i, c in enumerate(counts) if c == count]
                evict(policy, held, cells, some, count, seen, new, layer, num_layers)
        history.append([[sorted(cell) for cell in cells] for cells in caches])
    return history


def evict(policy, held, cells, some, count, seen, new, layer, num_layers):
    width = max(len(cells[i]) for i in some) + 2
    generator = torch.Generator().manual_seed(seen)
    positions = torch.full((len(some), 1, width), -1)
    for row, i in enumerate(some):
        places = torch.randperm(width, generator=generator)[: len(cells[i])]
        positions[row, 0, places] = torch.tensor(cells[i])
    budgets = torch.tensor([[len(cells[i]) - count] for i in some])
    cell_held = [held[i] for i in some]
    step = methods.Step(cell_held, positions, budgets, seen, new, layer, num_layers)
    standing = policy.standing(step, None).expand_as(positions)
    chosen = positions.gather(-1, methods.victims(standing, positions, count))
    for row, i in enumerate(some):
        assert chosen[row].min() >= 0
        cells[i] = [p for p in cells[i] if p not in chosen[row, 0].tolist()]


@pytest.mark.parametrize(("tail", "start"), [(0, 3), (1, 0), (7, 3)])
def test_ladders_and_windows_hold_their_budgets_in_one_batch(tail, start):
    num_layers, prompt = 8, 60
    policy = methods.build("lacache", span=4, start=start)
    fitting = start + num_layers + 1
    held = [
        methods.Held(prompt, fitting, fitting, tail),
        methods.Held(prompt, fitting - 1, fitting + 2, tail),
        methods.Held(prompt, 30, 33, tail),
        methods.Held(prompt, prompt, prompt + 4, tail),
    ]
    history = hold(policy, held, 50, num_layers)
    assert history == hold(policy, held, 50, num_layers)
    sliding = hold(methods.build("streaming_llm", sinks=start), held, 50, num_layers)
    shape = ladder.build(num_layers, 4, 0, start)
    for i, h in enumerate(held):
        if not shape.fits(h.kept):
            assert [[cells[i] for cells in layers] for layers in history] == [
                [cells[i] for cells in layers] for layers in sliding
            ]
            continue
        climb = ladder.Climb(shape, prompt, h.kept, h.limit, tail)
        caches = [list(ladder.select(shape, prompt, h.kept, layer)) for layer in range(num_layers)]
        seen = prompt
        for layers in history:
            new = range(seen, seen + (tail if tail and seen == prompt else 1))
            seen = new.stop
            for layer, dropped in enumerate(climb.evicted(seen)):
                caches[layer] = sorted({*caches[layer], *new} - set(dropped))
            assert [cells[i] for cells in layers] == caches
            assert len(caches[0]) <= h.limit


def test_a_full_cache_is_compacted_block_after_block_from_the_start():
    # Blocks of 2 leave their first token on even layers and their second on odd ones.
    climb = ladder.Climb(ladder.build(4, 2, 0, 2), 10, 10, 10, 0)
    assert [climb.evicted(seen) for seen in (11, 12, 13, 14)] == [
        [[3], [2], [3], [2]],
        [[5], [4], [5], [4]],
        [[7], [6], [7], [6]],
        [[9], [8], [9], [8]],
    ]
    # The last 4 tokens are reached: it starts over.
    assert climb.evicted(15) == [[4], [3], [4], [3]]
    assert climb.evicted(13) == [[7], [6], [7], [6]]


def test_a_ladder_knows_no_step_inside_the_tail():
    climb = ladder.Climb(ladder.build(4, 2, 0, 2), 10, 10, 10, 5)
    with pytest.raises(ValueError, match="14 tokens; the first ends with 15"):
        climb.evicted(14)


def test_a_ladder_that_cannot_shrink_is_refused_while_decoding():
    policy = methods.build("lacache", span=4)
    with pytest.raises(ValueError, match=r"span=4.*4 layers"):
        policy.evictions(methods.Held(40, 20, 20, 0), 1, 41, 4)


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
