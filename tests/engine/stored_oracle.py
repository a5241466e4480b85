"""What the engine must reproduce where entries are stored otherwise: the plain model, token by
token, whose cache is dequantised, or read in part, by numpy.

Separate, simple code: one cell, one head after the other, lists of positions.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import numpy as np
import torch
from masked_oracle import attention
from scipy.cluster.vq import kmeans2, vq
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

from harness.engine.inputs import first_part, position_ids
from harness.settings.caches import HostValues, PQKeys, Quantized


def grid(low, high, bits, half=np.float16):
    """Step and zero of one group as half precision stores them, rounded outwards."""
    levels = 2**bits - 1
    zero = half(low)
    if np.float32(zero) > low:
        zero = np.nextafter(zero, half(-np.inf))
    wanted = (high - np.float32(zero)) / np.float32(levels)
    step = half(wanted)
    if np.float32(step) < wanted:
        step = np.nextafter(step, half(np.inf))
    return step, zero


def codes_of(numbers, bits, half=np.float16):
    """Codes, step and zero of numbers [n] that share a grid."""
    numbers = numbers.astype(np.float32)
    step, zero = grid(numbers.min(), numbers.max(), bits, half)
    if not step:
        return np.zeros(len(numbers)), step, zero
    codes = np.rint((numbers - np.float32(zero)) / np.float32(step))
    return np.clip(codes, 0, 2**bits - 1), step, zero


def restored(numbers, bits, half=np.float16):
    """Numbers [n] that share a grid, as they come back."""
    codes, step, zero = codes_of(numbers, bits, half)
    return (np.float64(zero) + codes * np.float64(step)).astype(np.float32)


def keys_back(keys, bits):
    """Keys [n, d] of one group of entries: a grid for every channel."""
    return np.stack([restored(column, bits) for column in keys.T], axis=1)


def values_back(values, bits, group):
    """Values [n, d]: a grid for every `group` channels of an entry."""
    parts = [slice(i, i + group) for i in range(0, values.shape[1], group)]
    return np.stack([np.concatenate([restored(row[p], bits) for p in parts]) for row in values])


def books_of(keys, parts, bits):
    """Centroids [parts][k, sub] of keys [n, d], by scipy, begun at evenly spaced keys."""
    books, size = [], 2**bits
    for pieces in np.split(keys.astype(np.float64), parts, axis=1):
        start = pieces[[i * len(pieces) // size for i in range(size)]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of clusters without members, which stay
            found, _ = kmeans2(pieces, start, iter=12, minit="matrix")
        books.append(pieces if len(pieces) <= size else found)
    return books


def nearest_of(pieces, centroids):
    """Which centroid [k, sub] is nearest to each piece [n, sub]."""
    return vq(pieces.astype(np.float64), centroids.astype(np.float64))[0]


class Head:
    """What one KV head of one cell holds: positions as they are, and groups that were packed."""

    def __init__(self, positions, setting):
        self.setting = setting
        self.open, self.waiting, self.back = [*positions], [], {}
        self.first, self.books = [*positions], None
        if setting is not None:
            older = len(positions) - setting.residual
            for first in range(0, older, setting.step):
                last = min(first + setting.step, older)
                self.waiting.append(self.open[first:last])
            self.open = self.open[max(older, 0) :]

    def pack(self):
        """As many of the oldest as are due."""
        if isinstance(self.setting, PQKeys) and len(self.first) < 2**self.setting.bits:
            return
        while (
            self.setting is not None and len(self.open) >= self.setting.residual + self.setting.step
        ):
            self.waiting.append(self.open[: self.setting.step])
            self.open = self.open[self.setting.step :]

    def stored(self, keys, values):
        """Keys and values [n, d] of all positions, those of packed ones as they come back."""
        for group in self.waiting:
            both = self.packed(keys, keys[group]), self.packed_values(values[group])
            for position, key, value in zip(group, *both, strict=True):
                self.back[position] = key, value
        self.waiting = []
        keys, values = keys.copy(), values.copy()
        for position, (key, value) in self.back.items():
            keys[position], values[position] = key, value
        return keys, values

    def packed(self, every, keys):
        """Keys of a group as they come back."""
        if isinstance(self.setting, Quantized):
            return keys_back(keys, self.setting.bits)
        if isinstance(self.setting, HostValues):
            return keys
        assert isinstance(self.setting, PQKeys)
        if self.books is None:
            self.books = books_of(every[self.first], self.setting.parts, self.setting.bits)
        pieces = np.split(keys, self.setting.parts, axis=1)
        pairs = zip(pieces, self.books, strict=True)
        return np.concatenate([book[nearest_of(piece, book)] for piece, book in pairs], axis=1)

    def packed_values(self, values):
        """Values of a group as they come back."""
        if isinstance(self.setting, Quantized):
            return values_back(values, self.setting.bits, self.setting.group)
        return values


_heads: dict[int, list[Head]] = {}
read: list[int] = []  # packed positions that each pass of each layer reads, of all heads


def dequantised_attention(module, query, key, value, attention_mask, scaling=None, **_):
    """query [1, H, q, d] of the newest tokens, key and value [1, Hkv, n, d] of all."""
    new, dim = query.shape[2:]
    length, groups = key.shape[2], query.shape[1] // key.shape[1]
    scaling = dim**-0.5 if scaling is None else scaling
    heads, held = _heads[module.layer_idx], []
    for head, own in enumerate(heads):
        own.pack()
        held.append(own.stored(key[0, head].numpy(), value[0, head].numpy()))
        own.open += range(length - new, length)

    def attention(head, query_head, row, seen):
        keys = held[head][0].astype(np.float64)
        logits = keys @ query[0, query_head, row].double().numpy() * scaling
        hidden = [i not in seen or i > length - new + row for i in range(length)]
        weights = np.exp(np.where(hidden, -np.inf, logits - logits[~np.array(hidden)].max()))
        return weights / weights.sum()

    every = [{*own.back, *own.open} for own in heads]
    pairs = [(head, head * groups + g, row) for head in range(len(heads)) for g in range(groups)
             for row in range(new)]  # fmt: skip
    share = heads[0].setting.share if heads[0].setting else None
    if share is not None:
        mass = np.zeros((len(heads), length))
        for head, own, row in pairs:
            mass[head] += attention(head, own, row, every[head]) / (groups * new)
        every = chosen(heads, mass, share)
        read.append(sum(len(own - {*head.open}) for own, head in zip(every, heads, strict=True)))
    found = np.zeros((query.shape[1], new, value.shape[-1]))
    for head, own, row in pairs:
        found[own, row] = attention(head, own, row, every[head]) @ held[head][1]
    return torch.from_numpy(found).float().transpose(0, 1)[None], None


def chosen(heads, mass, share):
    """The positions that each head reads: its open ones, and of all packed ones the fewest that
    bring the mass [heads, n] that is read to the share of all of it.
    """
    every = [{*own.open} for own in heads]
    reached = sum(mass[head, [*own]].sum() for head, own in enumerate(every))
    packed = [(mass[head, at], head, at) for head, own in enumerate(heads) for at in own.back]
    for one, head, at in sorted(packed, key=lambda each: -each[0]):
        if reached >= share * len(heads):
            break
        every[head].add(at)
        reached += one
    return every


AttentionInterface.register("dequantised", dequantised_attention)
AttentionMaskInterface.register("dequantised", eager_mask)


@contextmanager
def holding(heads):
    """What each layer's heads hold, by index of the layer."""
    _heads.update(heads)
    try:
        yield
    finally:
        _heads.clear()


@torch.no_grad()
def logits(model, prompt, answer, boundary, kept, setting):
    """Logits [n, V] of the passes behind the boundary: over the rest of the prompt, where there is
    one, and over each answer token but the last. kept[layer]: positions of each head.
    """
    inputs, modality = prompt.inputs, prompt.modality
    places = position_ids(model, inputs, modality)
    cache = DynamicCache(config=model.config)
    model(
        **first_part(dict(inputs), boundary),
        position_ids=places[..., :boundary],
        past_key_values=cache,
    )
    heads = {layer: [Head(own, setting) for own in positions] for layer, positions in kept.items()}
    found = []
    following = int(places.max()) + 1
    tail = (inputs["input_ids"][:, boundary:], places[..., boundary:])
    passes = [tail] if boundary < places.shape[-1] else []
    for i, token in enumerate(answer[:-1]):
        place = places.new_full((*places.shape[:-1], 1), following + i)
        passes.append((torch.tensor([[token]]), place))
    with attention(model, "dequantised"), holding(heads):
        for ids, place in passes:
            output = model(input_ids=ids, position_ids=place, past_key_values=cache)
            found.append(output.logits[0, -1])
    return torch.stack(found)
