"""Pools of tiles for the tests of what reads and writes them, on the device of the tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tests.kernels.oracles import DEVICE, draw


@dataclass
class Pool:
    """A pool whose tiles lie in no order; what no entry needs holds something all the same."""

    keys: Tensor
    values: Tensor
    places: Tensor
    carried: Tensor | None
    table: Tensor
    counts: Tensor

    def tensors(self) -> list[Tensor | None]:
        """What operations change."""
        return [self.keys, self.values, self.places, self.carried]

    def copy(self) -> Pool:
        """Another with the same contents."""
        copies = [None if each is None else each.clone() for each in self.tensors()]
        return replace(self, keys=copies[0], values=copies[1], places=copies[2], carried=copies[3])

    def slot(self, sequence: int, order: int) -> tuple[int, int] | None:
        """Tile and place in it of an entry; None without a tile."""
        row, size = self.table[sequence].tolist(), self.keys.shape[1]
        block = order // size
        return None if block >= len(row) or row[block] < 0 else (row[block], order % size)

    def same(self, other: Pool) -> bool:
        """Whether both are bitwise equal."""
        return all(
            (one is None and two is None) or torch.equal(one, two)
            for one, two in zip(self.tensors(), other.tensors(), strict=True)
        )


def make(counts, blocks, size, dim, value_dim, dtype=torch.float32, carried=True) -> Pool:
    """Sequences of `counts` entries in `blocks` tiles each."""
    total = sum(blocks) + 2  # two belong to nobody
    order = torch.randperm(total, generator=torch.Generator().manual_seed(9)).tolist()
    table = torch.full((len(counts), max(blocks)), -1, dtype=torch.int32)
    places = torch.full((total, size), -1)
    for sequence, (count, own) in enumerate(zip(counts, blocks, strict=True)):
        for block in range(own):
            table[sequence, block] = order.pop()
        for entry in range(count):
            places[table[sequence, entry // size], entry % size] = 3 * entry + sequence
    return Pool(
        draw(total, size, dim, seed=1, dtype=dtype),
        draw(total, size, value_dim, seed=2, dtype=dtype),
        places.to(DEVICE),
        draw(total, size, seed=3) if carried else None,
        table.to(DEVICE),
        torch.tensor(counts, dtype=torch.int32, device=DEVICE),
    )


def meta(dtype, dim, size, blocks, carried=True) -> Pool:
    """The shapes of 64 sequences."""
    tiles = 64 * blocks
    entries = torch.empty(tiles, size, dim, dtype=dtype, device="meta")
    return Pool(
        entries,
        entries,
        torch.empty(tiles, size, dtype=torch.int64, device="meta"),
        torch.empty(tiles, size, device="meta") if carried else None,
        torch.empty(64, blocks, dtype=torch.int32, device="meta"),
        torch.empty(64, dtype=torch.int32, device="meta"),
    )
