"""Sequences of different lengths in tiles, and their attention in float64."""

from __future__ import annotations

import torch

from methods.kernels.ragged_attention import Turning, ragged_attention
from tests.kernels.oracles import DEVICE, draw


class Pool:
    """Sequences of random entries in tiles that lie in no order; NaN where there is no entry."""

    def __init__(self, lengths, tile, dim, value_dim, dtype, tokens, first=700):
        generator = torch.Generator().manual_seed(5)
        blocks = [-(-length // tile) + index % 2 for index, length in enumerate(lengths)]
        order = torch.randperm(sum(blocks), generator=generator).split(blocks)
        total = sum(blocks)
        self.keys = torch.full((total, tile, dim), torch.nan)
        self.values = torch.full((total, tile, value_dim), torch.nan)
        self.places = torch.full((total, tile), -1)
        self.table = torch.full((len(lengths), max(blocks)), -1, dtype=torch.int32)
        self.owner = torch.empty(total, dtype=torch.int64)
        self.ranks = torch.zeros(total, tile, dtype=torch.int32)
        self.slots = []  # of each sequence in the pool laid end to end
        for sequence, (length, own) in enumerate(zip(lengths, order, strict=True)):
            slots = (own[:, None] * tile + torch.arange(tile)).flatten()[:length]
            self.slots.append(slots.to(DEVICE))
            self.table[sequence, : len(own)] = own
            self.owner[own] = sequence
            # Places in any order, all new tokens among them, those behind the first hidden to it.
            old = torch.randperm(first, generator=generator)[: max(0, length - tokens)]
            new = torch.arange(first + tokens - (length - len(old)), first + tokens)
            place = torch.cat([old, new])[torch.randperm(length, generator=generator)]
            if length < tokens:
                place = place - (tokens - length)  # the first token sees something
            self.places.view(-1)[slots] = place
            self.ranks.view(-1)[slots] = place.argsort().argsort().int()
            self.keys.flatten(0, 1)[slots] = torch.randn(length, dim, generator=generator)
            self.values.flatten(0, 1)[slots] = torch.randn(length, value_dim, generator=generator)
        self.counts = torch.tensor(lengths, dtype=torch.int32)
        self.first = torch.tensor([first])
        self.keys, self.values = self.keys.to(dtype), self.values.to(dtype)
        for name, each in vars(self).items():
            if isinstance(each, torch.Tensor):
                setattr(self, name, each.to(DEVICE))

    def attend(self, queries, tokens, scaling, rows=True, turning=None):
        pool = self.keys, self.values, self.places, self.table, self.counts, self.owner
        return ragged_attention(queries, *pool, self.first, tokens, scaling, rows, turning)

    def oracle(self, queries, tokens, scaling, turning=None):
        """Outputs and weights in float64, one sequence after another."""
        outputs = torch.empty(*queries.shape[:2], self.values.shape[2], dtype=torch.float64)
        weights = torch.zeros(len(self.owner), queries.shape[1], self.places.shape[1])
        outputs, weights = outputs.to(DEVICE), weights.double().to(DEVICE)
        token = self.first + torch.arange(queries.shape[1], device=DEVICE) % tokens
        for sequence, slots in enumerate(self.slots):
            keys = self.keys.flatten(0, 1)[slots]
            if turning is not None and turning.start[sequence] >= 0:
                rank = turning.start[sequence] + self.ranks.view(-1)[slots]
                turned = turn(keys.double(), turning, rank)
                keys = turned.to(keys.dtype) if keys.dtype != torch.float32 else turned
            logits = queries[sequence].double() @ keys.double().T * scaling
            hidden = self.places.view(-1)[slots] > token[:, None]
            own = logits.masked_fill(hidden, -torch.inf).softmax(-1)
            outputs[sequence] = own @ self.values.flatten(0, 1)[slots].double()
            tile = self.places.shape[1]
            weights[slots // tile, :, slots % tile] = own.T
        return outputs, weights


def turn(keys, turning, rank):
    """k cos + rotate_half(k) sin of keys [n, d], by complex numbers."""
    dim = turning.cosines.shape[1]
    half, step = (1, 2) if turning.interleaved else (dim // 2, 1)
    first = torch.arange(0, dim // 2, device=DEVICE) * step
    phase = torch.complex(turning.cosines[rank].double(), turning.sines[rank].double())
    pairs = torch.complex(keys[:, first], keys[:, first + half]) * phase[:, first]
    turned = keys.clone()
    turned[:, first], turned[:, first + half] = pairs.real, pairs.imag
    return turned


def turns(pool, dim, interleaved, seed=3):
    """Turns of every other sequence, those of each from a table of its own."""
    sequences, longest = len(pool.counts), int(pool.counts.max())
    angles = 3 * draw(2 * longest + 5, dim // 2, seed=seed)
    pairs = angles.repeat_interleave(2, 1) if interleaved else torch.cat([angles, angles], 1)
    start = torch.tensor([[-1, 0, -1, longest + 5][i % 4] for i in range(sequences)])
    return Turning(1.1 * pairs.cos(), 1.1 * pairs.sin(), start.to(DEVICE), pool.ranks, interleaved)
