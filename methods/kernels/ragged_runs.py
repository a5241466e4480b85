"""Attention over a pool of tiles that lie in order: dense batches in plain torch, no copies.

Must not know policies, models or why a pool is in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_FILLED = 0.75  # so much of a run is entries when it is found, the rest padding


@dataclass
class Run:
    """Neighbouring sequences of a pool with equally many tiles, all one behind the other.

    sequences: which ones. keys [s, d, n], values [s, n, dv], places int64 [s, 1, n]: views of all
    their slots. size: entries a tile. longest: entries of the longest of them; even: all have so
    many.
    """

    sequences: slice
    keys: Tensor
    values: Tensor
    places: Tensor
    size: int
    longest: int
    even: bool

    def measure(self, counts: Sequence[int]) -> None:
        """Take note of the entries of all sequences of the pool."""
        own = counts[self.sequences]
        self.longest = max(own)
        self.even = min(own) == self.longest


def find_runs(
    keys: Tensor, values: Tensor, places: Tensor, counts: Sequence[int], blocks: Sequence[int]
) -> list[Run]:
    """The runs of a pool whose tiles lie in the order of its sequences, as few as waste little.

    keys [T, tile, d], values [T, tile, dv] and places int64 [T, tile] are contiguous. counts:
    entries of each sequence; blocks: its tiles.
    """
    runs, tile = [], 0
    for first, last in pairwise(_cuts(counts, blocks)):
        tiles = slice(tile, tile := tile + (last - first) * blocks[first])
        own_keys, own_values, own_places = (
            pool[tiles].view(last - first, -1, *pool.shape[2:]) for pool in (keys, values, places)
        )
        run = Run(
            slice(first, last),
            own_keys.transpose(1, 2),
            own_values,
            own_places[:, None],
            keys.shape[1],
            0,
            False,
        )
        run.measure(counts)
        runs.append(run)
    return runs


def _cuts(counts: Sequence[int], blocks: Sequence[int]) -> list[int]:
    """Where runs begin, and the end of the last."""
    cuts, low, high = [0], counts[0], counts[0]
    for i, (count, own) in enumerate(zip(counts, blocks, strict=True)):
        low, high = min(low, count), max(high, count)
        if own != blocks[cuts[-1]] or low < _FILLED * high:
            cuts.append(i)
            low = high = count
    return [*cuts, len(counts)]


def attend_runs(
    queries: Tensor,
    runs: Sequence[Run],
    first: Tensor,
    tokens: int,
    scaling: float,
    rows: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Outputs [S, R, dv] of queries [S, R, d], whose row r sees places up to first + r % tokens.

    A single token sees every entry. first int64 [1]. The runs are all the pool has, one behind the
    other. rows: also the weights float32 [S, R, n], n the slots of the tiles that the longest
    sequence fills; 0 where there is no entry.
    """
    outputs, weights = [], None
    token = None if tokens == 1 else first + torch.arange(tokens, device=first.device)[:, None]
    scaled = queries.float() * scaling
    if rows:
        widest = max(run.longest for run in runs)
        widest += -widest % runs[0].size
        weights = queries.new_zeros(*queries.shape[:2], widest, dtype=torch.float32)
    for run in runs:
        logits = torch.bmm(scaled[run.sequences], run.keys[..., : run.longest].float())
        places = run.places[..., : run.longest]
        if not run.even:
            logits.masked_fill_(places < 0, -torch.inf)
        if token is not None:
            later = (places > token)[:, None]  # [s, 1, tokens, n]
            logits.unflatten(1, (-1, tokens)).masked_fill_(later, -torch.inf)
        own = torch.softmax(logits, -1)
        outputs.append(torch.bmm(own, run.values[:, : run.longest].float()))
        if weights is not None:
            weights[run.sequences, :, : run.longest] = own
    return torch.cat(outputs).to(runs[0].values.dtype), weights
