"""Layers with packed entries against lists: whatever is appended, selected and copied, each
sequence holds its own, as numpy packs them.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_oracle import Head

from harness.engine.cells import Cell, of_caches
from harness.engine.packed_layer import PackedLayer
from harness.engine.packing import gather
from harness.engine.settings import Branch
from harness.engine.tiles import Tiles
from harness.settings.caches import HostValues, PQKeys, Quantized

DIM, VALUE_DIM, HEADS = 6, 5, 2
CACHES = (None, Quantized(8, 4, 0), Quantized(4, 3, 5), Quantized(2, 32, 2), Quantized(4, 20, 9))
CACHES += (PQKeys(3, 3, 2), PQKeys(2, 2, 0), HostValues(1, 4))


class Listed:
    """What one sequence holds: a `Head`, and keys and values of all tokens so far."""

    def __init__(self, keys, values, positions, cache):
        self.keys, self.values = keys.numpy(), values.numpy()
        self.head = Head(positions, cache)

    def append(self, keys, values):
        self.head.pack()
        first = len(self.keys)
        self.keys = np.concatenate([self.keys, keys.numpy()])
        self.values = np.concatenate([self.values, values.numpy()])
        self.head.open += range(first, len(self.keys))

    def held(self):
        keys, values = self.head.stored(self.keys, self.values)
        every = [*self.head.back, *self.head.open]
        return {place: (keys[place], values[place]) for place in every}

    def copy(self):
        other = Listed.__new__(Listed)
        other.keys, other.values = self.keys, self.values
        other.head = Head([], self.head.setting)
        self.head.stored(self.keys, self.values)
        other.head.open, other.head.back = [*self.head.open], {**self.head.back}
        other.head.first, other.head.books = self.head.first, self.head.books
        return other


def made(rng, length, cells, seed):
    """A layer of cells with random caches, and what its sequences hold as lists."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, HEADS, length, DIM, generator=generator)
    values = torch.randn(1, HEADS, length, VALUE_DIM, generator=generator)
    kept = [
        [sorted(rng.sample(range(length), rng.randint(1, length))) for _ in range(HEADS)]
        for _ in range(cells)
    ]
    caches = [rng.choice(CACHES) for _ in range(cells)]
    places, counts = [], []
    for cell in kept:
        width = max(map(len, cell))
        places.append(torch.tensor([head + [-1] * (width - len(head)) for head in cell]))
        counts.append([len(head) for head in cell])
    asked = of_caches([Cell(Branch(cache=cache), length) for cache in caches])
    packed, rest, left = gather(keys, values, places, counts, asked)
    tiles = Tiles.gather(keys, values, rest, left, [None] * cells)
    listed = [
        Listed(keys[0, head], values[0, head], own, cache)
        for cell, cache in zip(kept, caches, strict=True)
        for head, own in enumerate(cell)
    ]
    return PackedLayer(tiles, HEADS, length, None, packed), listed


def check(layer, listed):
    wanted = [own.held() for own in listed]
    tiles = layer.readable(torch.zeros(len(listed) // HEADS, HEADS, 1, DIM), layer.token, 1.0)
    assert tiles.counts.tolist() == layer.counts.tolist() == [len(own) for own in wanted]
    view = tiles.view(torch.arange(len(listed)))
    found_keys, found_values = (pool.flatten(0, 1).numpy() for pool in (tiles.keys, tiles.values))
    for i, own in enumerate(wanted):
        places = view.places[i].tolist()
        assert sorted(places[: len(own)]) == [*own]  # without holes
        assert set(places[len(own) :]) <= {-1}
        slots = slice(int(tiles.starts[i]), int(tiles.starts[i]) + len(own))
        both = [own[place] for place in places[: len(own)]]
        keys, values = (np.stack(each) for each in zip(*both, strict=True))
        np.testing.assert_allclose(found_keys[slots], keys, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found_values[slots], values, rtol=1e-5, atol=1e-6)
    few = [each.head.setting is not None and len(each.head.back) for each in listed]
    sizes = layer.sizes().tolist()
    books = [_book_bytes(each.head) for each in listed]
    for own, packed, size, book in zip(wanted, few, sizes, books, strict=True):
        if not packed:
            assert size == len(own) * (DIM + VALUE_DIM) * 4 + book


def _book_bytes(head):
    """Of the centroids, which there are before anything is packed."""
    coded = isinstance(head.setting, PQKeys)
    return min(len(head.first), 2**head.setting.bits) * DIM * 4 if coded else 0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 17, 40]), st.integers(1, 4))
def test_any_course_of_steps_keeps_every_entry_with_its_sequence(seed, length, cells):
    rng = random.Random(seed)
    layer, listed = made(rng, length, cells, seed)
    check(layer, listed)
    for _ in range(rng.randint(1, 16)):
        if rng.random() < 0.8:
            new = rng.choice([1, 1, 2, 7])
            keys, values = (torch.randn(len(listed), new, dim) for dim in (DIM, VALUE_DIM))
            layer.settle()
            layer.append(keys, values)
            layer.token += new
            for own, key, value in zip(listed, keys, values, strict=True):
                own.append(key, value)
        elif rng.random() < 0.5:
            before, layer = layer, layer.copy()
            kept, listed = listed, [own.copy() for own in listed]
            check(before, kept)
        else:
            rows = rng.sample(range(len(listed) // HEADS), rng.randint(1, len(listed) // HEADS))
            layer = layer.part(torch.tensor(rows))
            listed = [listed[row * HEADS + head] for row in rows for head in range(HEADS)]
        check(layer, listed)


def test_what_is_packed_later_changes_nothing_of_a_copy():
    rng = random.Random(5)
    layer, listed = made(rng, 17, 3, 5)
    other, own = layer.copy(), [each.copy() for each in listed]
    for _ in range(40):
        layer.settle()
        layer.append(torch.randn(6, 1, DIM), torch.randn(6, 1, VALUE_DIM))
        layer.token += 1
    check(other, own)
    assert layer.nbytes > other.nbytes


@pytest.mark.parametrize("cache", CACHES[1:])
def test_no_head_has_more_in_full_precision_than_its_residual_and_a_group(cache):
    keys, values = torch.randn(1, HEADS, 50, DIM), torch.randn(1, HEADS, 50, VALUE_DIM)
    every = torch.arange(50).expand(HEADS, -1)
    packed, rest, left = gather(keys, values, [every], [[50, 50]], {cache: [0]})
    tiles = Tiles.gather(keys, values, rest, left, [None])
    layer = PackedLayer(tiles, HEADS, 50, None, packed)
    assert layer.tiles.counts.tolist() == [cache.residual] * HEADS
    most = 0
    for _ in range(60):
        layer.settle()
        layer.append(torch.randn(2, 1, DIM), torch.randn(2, 1, VALUE_DIM))
        layer.token += 1
        most = max(most, int(layer.tiles.counts.max()))
    assert most == cache.residual + cache.step
    assert layer.counts.tolist() == [110, 110]


def of_three(cache):
    """A layer of three cells of 30 entries, the last two stored so."""
    keys, values = torch.randn(1, HEADS, 30, DIM), torch.randn(1, HEADS, 30, VALUE_DIM)
    every = [torch.arange(30).expand(HEADS, -1)] * 3
    packed, rest, left = gather(keys, values, every, [[30, 30]] * 3, {cache: [1, 2]})
    tiles = Tiles.gather(keys, values, rest, left, [None] * 3)
    return PackedLayer(tiles, HEADS, 30, None, packed)


def test_entries_are_unpacked_when_others_are_packed_and_not_at_every_step():
    layer, opened = of_three(Quantized(bits=4, group=2, residual=4)), []
    for _ in range(2 * layer.packed[0].setting.step + 1):
        layer.settle()
        layer.append(torch.randn(6, 1, DIM), torch.randn(6, 1, VALUE_DIM))
        layer.token += 1
        now = layer.readable(torch.zeros(3, HEADS, 1, DIM), layer.token - 1, 1.0)
        opened += [] if opened and now is opened[-1] else [now]
    assert len(opened) == 3


def test_a_layer_that_shares_keys_reads_what_their_own_layer_reads():
    """Queries of several tokens, which see only what came before them."""
    for _ in range(6):
        layer = of_three(HostValues(0.5, 4))
        query = torch.randn(3, 2 * HEADS, 5, DIM)
        new = torch.randn(3, HEADS, 5, DIM), torch.randn(3, HEADS, 5, VALUE_DIM)
        layer.update(*new)
        own = layer.attend(query, *new, 1.3)
        torch.testing.assert_close(layer.share(query, 1.3), own)
        assert layer.fetched.passes.tolist() == [0, 1, 1]  # one, whoever looks


def test_what_is_fetched_is_noted_of_the_cell_that_fetched_it():
    layer = of_three(HostValues(1, 4))
    notes = layer.fetched
    whole = HEADS * 26 * VALUE_DIM * 4
    assert layer.host_sizes().tolist() == [0, 0, *[whole // HEADS] * 4]
    layer.settle()
    layer.readable(torch.randn(3, HEADS, 1, DIM), layer.token, 1.0)
    assert (notes.bytes.tolist(), notes.passes.tolist()) == ([0, whole, whole], [0, 1, 1])
    layer.batch_select_indices(torch.tensor([2, 0]))
    layer.settle()
    layer.readable(torch.randn(2, HEADS, 1, DIM), layer.token, 1.0)
    assert (notes.bytes.tolist(), notes.passes.tolist()) == ([0, whole, 2 * whole], [0, 1, 2])
    assert layer.copy().fetched.bytes.tolist() == [0, 0]
