"""What the engine must reproduce where entries are held in few bits: the plain model, token by
token, whose cache is dequantised by numpy.

Separate, simple code: one cell, one head after the other, lists of positions.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from masked_oracle import attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

from harness.engine.inputs import first_part, position_ids


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


class Head:
    """What one KV head of one cell holds: positions as they are, and groups that were packed."""

    def __init__(self, positions, setting):
        self.setting = setting
        self.open, self.waiting, self.back = [*positions], [], {}
        if setting is not None:
            older = len(positions) - setting.residual
            for first in range(0, older, setting.group):
                last = min(first + setting.group, older)
                self.waiting.append(self.open[first:last])
            self.open = self.open[max(older, 0) :]

    def pack(self):
        """As many of the oldest as are due."""
        while (
            self.setting is not None
            and len(self.open) >= self.setting.residual + self.setting.group
        ):
            self.waiting.append(self.open[: self.setting.group])
            self.open = self.open[self.setting.group :]

    def stored(self, keys, values):
        """Keys and values [n, d] of all positions, those of packed ones as they come back."""
        for group in self.waiting:
            own_keys = keys_back(keys[group], self.setting.bits)
            own_values = values_back(values[group], self.setting.bits, self.setting.group)
            for position, key, value in zip(group, own_keys, own_values, strict=True):
                self.back[position] = key, value
        self.waiting = []
        keys, values = keys.copy(), values.copy()
        for position, (key, value) in self.back.items():
            keys[position], values[position] = key, value
        return keys, values


_heads: dict[int, list[Head]] = {}


def dequantised_attention(module, query, key, value, attention_mask, scaling=None, **_):
    """query [1, H, q, d] of the newest tokens, key and value [1, Hkv, n, d] of all."""
    new, dim = query.shape[2:]
    length, groups = key.shape[2], query.shape[1] // key.shape[1]
    scaling = dim**-0.5 if scaling is None else scaling
    found = np.zeros((query.shape[1], new, value.shape[-1]))
    for head, held in enumerate(_heads[module.layer_idx]):
        held.pack()
        keys, values = held.stored(key[0, head].numpy(), value[0, head].numpy())
        for row in range(new):
            held.open.append(length - new + row)
            seen = [*held.back, *held.open]
            for own in range(head * groups, (head + 1) * groups):
                logits = keys[seen].astype(np.float64) @ query[0, own, row].double().numpy()
                weights = np.exp((logits - logits.max()) * scaling)
                found[own, row] = weights / weights.sum() @ values[seen]
    return torch.from_numpy(found).float().transpose(0, 1)[None], None


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
