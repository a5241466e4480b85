"""Tiles against lists: whatever is appended, evicted and selected, each sequence holds its own."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engine import tiles as tiles_module
from harness.engine.tiles import LARGE, ROOM, SMALL, Tiles
from methods.kernels import find_runs, ragged_attention

DIM, VALUE_DIM = 6, 5
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def gather(kept, length, heads=2, seed=0, dtype=torch.float32, carried=False, device="cpu"):
    """Tiles of cells that keep `kept` [cells][heads] positions, and the prompt's keys, values."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, heads, length, DIM, generator=generator).to(dtype)
    values = torch.randn(1, heads, length, VALUE_DIM, generator=generator).to(dtype)
    places, counts = [], []
    for cell in kept:
        width = max(len(head) for head in cell)
        rows = [torch.tensor(head + [-1] * (width - len(head))) for head in cell]
        places.append(torch.stack(rows).long().to(device))
        counts.append([len(head) for head in cell])
    floats = [own.float() * 2 if carried else None for own in places]
    tiles = Tiles.gather(keys.to(device), values.to(device), places, counts, floats)
    return tiles, keys, values


def contents(tiles):
    """{place: (key, value)} of each sequence, read from the pool itself."""
    found = [{} for _ in range(len(tiles.counts))]
    for tile, owner in enumerate(tiles.owner.tolist()):
        for slot, place in enumerate(tiles.places[tile].tolist()):
            if place >= 0:
                assert place not in found[owner]
                found[owner][place] = (tiles.keys[tile, slot], tiles.values[tile, slot])
    return found


def check(tiles, expected):
    found = contents(tiles)
    assert [sorted(each) for each in found] == [sorted(each) for each in expected]
    assert tiles.counts.tolist() == [len(each) for each in expected]
    assert torch.equal(tiles.device_counts.cpu().long(), tiles.counts)
    assert torch.equal(tiles.device_table.cpu().long(), tiles.table)
    for own, wanted in zip(found, expected, strict=True):
        for place, (key, value) in wanted.items():
            assert torch.equal(own[place][0].cpu(), key)
            assert torch.equal(own[place][1].cpu(), value)


def draw_kept(rng, cells, heads, length):
    return [
        [sorted(rng.sample(range(length), rng.randint(1, length))) for _ in range(heads)]
        for _ in range(cells)
    ]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 3, 17, 40]),
    st.integers(1, 4),
    st.sampled_from(DEVICES),
)
def test_any_course_of_steps_keeps_every_entry_with_its_sequence(seed, length, cells, device):
    rng, heads = random.Random(seed), 2
    kept = draw_kept(rng, cells, heads, length)
    tiles, keys, values = gather(kept, length, heads, seed, carried=True, device=device)
    expected = [
        {place: (keys[0, head, place], values[0, head, place]) for place in own}
        for cell in kept
        for head, own in enumerate(cell)
    ]
    seen = length
    for _ in range(rng.randint(1, 30)):
        step = rng.random()
        if step < 0.6:
            seen = append(tiles, expected, seen, rng.choice([1, 1, 1, 2, 19]))
        elif step < 0.9:
            evict(tiles, expected, rng)
        else:
            some = rng.sample(range(len(expected)), rng.randint(1, len(expected)))
            tiles.select(torch.tensor(some))
            expected = [expected[each] for each in some]
        check(tiles, expected)
    everything = tiles.view(torch.arange(len(expected)))
    remembered = everything.pick(tiles.carried).tolist()
    for own, row, marks in zip(expected, everything.places.tolist(), remembered, strict=True):
        held = {place: mark for place, mark in zip(row, marks, strict=True) if place >= 0}
        assert held == {place: 2 * place if place < length else 0 for place in own}


def token(index, tiles):
    return torch.tensor([index], device=tiles.keys.device)


def attend(tiles, queries, scaling, first, new, runs=None):
    """Attention of `new` tokens from `first` on, with the weights."""
    pool = (tiles.keys, tiles.values, tiles.places, tiles.device_table, tiles.device_counts)
    place = token(first, tiles)
    return ragged_attention(queries, *pool, tiles.owner, place, new, scaling, True, None, runs)


def append(tiles, expected, seen, new):
    sizes = (DIM, VALUE_DIM)
    fresh = [torch.randn(len(expected), new, dim).to(tiles.keys.dtype) for dim in sizes]
    tiles.append(*(each.to(tiles.keys.device) for each in fresh), token(seen, tiles))
    for sequence, own in enumerate(expected):
        for k in range(new):
            own[seen + k] = (fresh[0][sequence, k], fresh[1][sequence, k])
    return seen + new


def evict(tiles, expected, rng):
    """Of some sequences equally many, or of each its own number."""
    some = rng.sample(range(len(expected)), rng.randint(1, len(expected)))
    even = rng.randint(0, min(len(expected[each]) for each in some) - 1)
    drops = [even] * len(some)
    if own := rng.random() < 0.5:
        some = [each for each in some if len(expected[each]) > 1]
        drops = [rng.randint(1, len(expected[each]) - 1) for each in some]
    if not any(drops):
        return
    places = tiles.view(torch.tensor(some)).places.tolist()
    present = [[i for i, place in enumerate(row) if place >= 0] for row in places]
    gone = [rng.sample(row, drop) for row, drop in zip(present, drops, strict=True)]
    order = torch.tensor([row + [-1] * (max(drops) - len(row)) for row in gone])
    given = torch.tensor(some), order.to(tiles.keys.device)
    tiles.evict_some(*given, torch.tensor(drops)) if own else tiles.evict(*given)
    for sequence, row, dropped in zip(some, places, gone, strict=True):
        for i in dropped:
            del expected[sequence][row[i]]


def test_a_sequence_that_became_short_gives_its_tiles_back():
    rng, length = random.Random(4), 900
    tiles, keys, values = gather([[[*range(length)], [5]]], length)
    expected = [
        {place: (keys[0, head, place], values[0, head, place]) for place in own}
        for head, own in enumerate([range(length), [5]])
    ]
    gone = rng.sample(range(length), 850)
    tiles.evict_some(torch.tensor([0]), torch.tensor([gone]), torch.tensor([850]))
    for place in gone:
        del expected[0][place]
    assert tiles.places.numel() > length
    for seen in range(length, length + LARGE):  # the other one needs a tile more
        append(tiles, expected, seen, 1)
    check(tiles, expected)
    assert tiles.places.numel() <= sum(map(len, expected)) + 2 * (ROOM + LARGE)


def test_a_sequence_wastes_less_than_a_tile_whatever_the_longest_is():
    rng = random.Random(3)
    kept = [[sorted(rng.sample(range(300), n)) for n in (299, 1)] for _ in range(3)]
    tiles, _, _ = gather(kept, 300)
    room = 0
    for _ in range(90):
        entries, sequences, total = int(tiles.counts.sum()), 6, tiles.places.numel()
        assert entries <= total <= entries + (SMALL + room) * sequences
        tiles.append(torch.zeros(6, 1, DIM), torch.zeros(6, 1, VALUE_DIM), token(300, tiles))
        room = ROOM if tiles.places.numel() > total else room


def test_long_sequences_get_large_tiles():
    every = list(range(32 * SMALL))
    assert gather([[every, every[:3]]], len(every))[0].size == LARGE
    assert gather([[every[1:], every[:3]]], len(every))[0].size == SMALL


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_dense_runs_are_attention_after_any_course_of_steps(seed, dtype, monkeypatch):
    monkeypatch.setattr(tiles_module, "TILES", 0)  # however many runs there are
    rng, seen = random.Random(seed), 70
    sizes = sorted((rng.choice([70, 40, 38, 9]) for _ in range(4)), reverse=True)
    kept = [[sorted(rng.sample(range(seen), n)) for _ in range(2)] for n in sizes]
    tiles, keys, values = gather(kept, seen, seed=seed, dtype=dtype)
    expected = [
        {place: (keys[0, head, place], values[0, head, place]) for place in own}
        for cell in kept
        for head, own in enumerate(cell)
    ]
    for step in range(40):
        new = 5 if step == 29 else 1
        seen = append(tiles, expected, seen, new)
        if step % 10 == 9:
            check_runs(tiles, expected, seen, new)
        if step % 8 == 7:
            evict(tiles, expected, rng)
        if step == 20:
            some = sorted(rng.sample(range(8), 7))
            tiles.select(torch.tensor(some))
            expected = [expected[each] for each in some]


def check_runs(tiles, expected, seen, new):
    """Attention of the last tokens over the runs, one sequence after another in float64."""
    queries = torch.randn(len(expected), 3 * new, DIM).to(tiles.keys.dtype)
    output, weights = attend(tiles, queries, 0.3, seen - new, new, tiles.runs())
    view = tiles.view(torch.arange(len(expected)))
    rows = view.rows(weights)
    exact = {torch.float32: 1e-5, torch.float16: 4e-3}[tiles.keys.dtype]
    for i, own in enumerate(expected):
        places = view.places[i].tolist()
        own_keys, own_values = (
            torch.stack(each).double() for each in zip(*own.values(), strict=True)
        )
        logits = queries[i].double() @ own_keys.T * 0.3
        for row, logit in enumerate(logits):
            logit[torch.tensor([*own]) > seen - new + row % new] = -torch.inf
        wanted = logits.softmax(-1)
        torch.testing.assert_close(output[i].double(), wanted @ own_values, rtol=exact, atol=exact)
        found = rows[i][:, [places.index(place) for place in own]]
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    assert weights.sum() == pytest.approx(3 * new * len(expected), rel=1e-5)  # nothing elsewhere


@pytest.mark.parametrize("then", ["append", "select", "view", "evict", "reserve"])
def test_a_gap_is_filled_by_the_next_entry_or_closed_by_what_needs_it(then):
    kept = [[[0, 1, 2, 3], [4, 5, 6]], [[1, 3, 5, 7], [2, 4]]]
    tiles, keys, values = gather(kept, 8, carried=True)
    heads = [(head, own) for cell in kept for head, own in enumerate(cell)]
    expected = [{p: (keys[0, head, p], values[0, head, p]) for p in own} for head, own in heads]
    tiles.evict(torch.tensor([0, 2, 3]), torch.tensor([[1], [3], [0]]))
    for sequence, place in ((0, 1), (2, 7), (3, 2)):
        del expected[sequence][place]
    check(tiles, expected)
    if then == "append":
        append(tiles, expected, 8, 1)
    elif then == "select":
        tiles.select(torch.tensor([3, 0]))
        expected = [expected[3], expected[0]]
    elif then == "view":
        assert (tiles.view(torch.arange(4)).places >= 0).sum(1).tolist() == [3, 3, 3, 1]
    elif then == "evict":
        tiles.evict(torch.tensor([0, 1]), torch.tensor([[0], [2]]))
        del expected[0][0], expected[1][6]
    else:
        append(tiles, expected, 8, 40)
    check(tiles, expected)
    append(tiles, expected, 60, 2)
    check(tiles, expected)
    slots = tiles.starts[:, None] + torch.arange(int(tiles.counts.min()))
    assert (tiles.places.view(-1)[slots] >= 0).all()  # no holes


def test_few_slots_of_a_run_are_padding():
    counts = [400, 400, 330, 201, 201, 120, 110, 64, 40, 39, 38, 5]
    blocks = [count // SMALL + 1 for count in counts]
    pool = torch.zeros(sum(blocks), SMALL, DIM)
    runs = find_runs(pool, pool, torch.zeros(sum(blocks), SMALL), counts, blocks)
    assert [run.sequences.start for run in runs[1:]] == [run.sequences.stop for run in runs[:-1]]
    assert runs[0].sequences.start == 0
    assert runs[-1].sequences.stop == len(counts)
    for run in runs:
        own = counts[run.sequences]
        assert run.longest == max(own)
        assert run.even == (len(set(own)) == 1)
        assert min(own) >= 0.75 * max(own)
    assert len(runs) == 8


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("group", "new"), [(1, 1), (4, 1), (7, 1), (3, 5)])
def test_attention_over_tiles_is_attention(group, new, dtype, device):
    rng = random.Random(group)
    kept = draw_kept(rng, 3, 2, 70)
    tiles, keys, values = gather(kept, 70, seed=group, dtype=dtype, device=device)
    more = [torch.randn(6, new, dim).to(dtype) for dim in (DIM, VALUE_DIM)]
    tiles.append(*(each.to(device) for each in more), token(70, tiles))
    queries = (4 * torch.randn(6, group * new, DIM)).to(dtype)
    output, weights = attend(tiles, queries.to(device), 0.3, 70, new)
    view = tiles.view(torch.arange(6))
    output, rows = output.cpu(), view.rows(weights).cpu()
    exact = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for sequence in range(6):
        cell, head = divmod(sequence, 2)
        own = kept[cell][head]
        own_keys = torch.cat([keys[0, head, own], more[0][sequence]]).double()
        own_values = torch.cat([values[0, head, own], more[1][sequence]]).double()
        wanted = queries[sequence].double() @ own_keys.T * 0.3
        future = torch.ones(new, new).triu(1).bool().repeat(group, 1)
        wanted[:, len(own) :].masked_fill_(future, -torch.inf)
        wanted = wanted.softmax(-1)
        torch.testing.assert_close(
            output[sequence].double(), wanted @ own_values, rtol=exact, atol=exact
        )
        order = [view.places[sequence].tolist().index(p) for p in [*own, *range(70, 70 + new)]]
        torch.testing.assert_close(
            rows[sequence][:, order].double(), wanted, rtol=5 * exact, atol=exact
        )
        assert float(rows[sequence].sum()) == pytest.approx(group * new, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_products_are_not_rounded_to_half_precision(dtype):
    """Keys with a large common part, as key biases give: their products overflow float16."""
    generator = torch.Generator().manual_seed(5)
    common = 60 * torch.randn(DIM, generator=generator)
    keys = (torch.randn(1, 1, 50, DIM, generator=generator) + common).to(dtype)
    values = torch.randn(1, 1, 50, VALUE_DIM, generator=generator).to(dtype)
    queries = torch.randn(1, 3, DIM, generator=generator).to(dtype) + (20 * common).to(dtype)
    tiles = Tiles.gather(keys, values, [torch.arange(50)[None]], [[50]], [None])
    output, _ = attend(tiles, queries, 0.01, 49, 1)
    products = queries[0].double() @ keys[0, 0].double().T
    assert float(products.abs().max()) > 65504
    wanted = (products * 0.01).softmax(-1) @ values[0, 0].double()
    exact = 2e-3 if dtype == torch.float16 else 2e-2
    torch.testing.assert_close(output[0].double(), wanted, rtol=exact, atol=exact)
