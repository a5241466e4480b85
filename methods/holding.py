"""Decoding under a budget: what a policy sees of its cells at a step, and which entries go.

Knows tensors and counts; must not know caches, models or how cells are batched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .budgets import pooled


@dataclass(frozen=True)
class Held:
    """One cell that holds its budget, on one layer.

    prompt: tokens in the cache when it was evicted; kept: how many of them stayed; limit: most
    entries after a step, not below `kept`. tail: prompt tokens that were read after the eviction,
    in one forward pass; then tokens come one by one. Where heads keep different numbers, kept and
    limit are their mean, and every head may grow by limit - kept. count: tokens of the prompt that
    were to be kept on average over the layers; None: as many as here.
    """

    prompt: int
    kept: int
    limit: int
    tail: int
    count: int | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """Cells of one policy on one layer, just after `new` tokens were appended and attended.

    positions int64 [C, Hkv, n]: index of each entry's token in the sequence, -1 where a head has no
    entry; in no particular order. budgets int64 [C, Hkv]: entries of each head after this step's
    eviction, if every head drops as many. seen: tokens so far. attention float32 [C, H, new, n]:
    rows of the new tokens, None unless the policy observes. carried float32 [C, Hkv, n]: what
    `Policy.carry` gave at the last step, or the policy's Selection.carried at the first; 0 for new
    tokens; None if it carries nothing. text bool [C, Hkv, n]: text of the prompt, None unless the
    policy spares it. layer: a number; of a policy that spans layers also int64 [C, 1, 1], for cells
    of several. keys [C, Hkv, n, d] of the entries (anything where there is none) and queries
    float32 [C, H, w, d], the last ones times the softmax scale: of a policy that recalls them,
    where entries go. hidden [C, new, width]: states of the new tokens that entered attention, where
    the policy sees them.
    """

    held: Sequence[Held]
    positions: Tensor
    budgets: Tensor
    seen: int
    new: int
    layer: int | Tensor
    num_layers: int
    attention: Tensor | None = None
    carried: Tensor | None = None
    text: Tensor | None = None
    keys: Tensor | None = None
    queries: Tensor | None = None
    hidden: Tensor | None = None


class Due(NamedTuple):
    """Cells of one policy on one layer that drop an entry a head, or look on, after a step.

    All as in Step, but for the budgets int64 [C, Hkv], which are on the host; device: of the cache.
    """

    held: Sequence[Held]
    budgets: Tensor
    seen: int
    layer: int
    num_layers: int
    device: torch.device


class Rule(NamedTuple):
    """A standing that `kernels.lowest_entries` works out, int64 [C, Hkv] on the host.

    by: what it is, see there. first, last: how many first positions and how many of the last ones
    stay whatever their standing. given: int64 [n] on the device, what `first` counts in where the
    standing is by place.
    """

    by: Tensor
    first: Tensor
    last: Tensor
    given: Tensor | None = None


def victims(standing: Tensor, positions: Tensor, count: int) -> Tensor:
    """The `count` entries of lowest standing, int64 [C, Hkv, count]; of equals, the newest go.

    standing float32 and positions int64 [C, Hkv, n], positions -1 where there is no entry.
    """
    standing = torch.where(positions < 0, torch.inf, standing)
    if count == 1:
        lowest = standing == standing.amin(-1, keepdim=True)
        return torch.where(lowest, positions, -1).argmax(-1, keepdim=True)
    newest_first = positions.sort(dim=-1, descending=True, stable=True).indices
    order = standing.gather(-1, newest_first).sort(dim=-1, stable=True).indices[..., :count]
    return newest_first.gather(-1, order)


def victims_across(
    standing: Sequence[Tensor], positions: Sequence[Tensor], count: int
) -> list[tuple[Tensor, Tensor]]:
    """Which entries go where the heads of all layers compete: for each layer their order in each
    head, int64 [C, Hkv, m], -1 behind the last, and how many they are, int64 [C, Hkv] on the host.

    standing and positions as in `victims`, of each layer; count: entries that go of a head on
    average. Each head keeps its best one. Of equals in a head the newest go, and heads keep equals
    in turn, as in `budgets.pooled`. A GPU is waited for once.
    """
    heads = [each.shape[1] for each in positions]
    most = max(each.shape[2] for each in positions)
    places = torch.cat([pad(each, (0, most - each.shape[2]), value=-1) for each in positions], 1)
    worth = torch.cat([pad(each, (0, most - each.shape[2])) for each in standing], 1)
    held = places >= 0  # [C, H, n], H heads of all layers
    worth = worth.clamp_min(torch.finfo(worth.dtype).min).masked_fill(~held, -torch.inf)
    behind = places.masked_fill(~held, torch.iinfo(places.dtype).max)
    oldest_first = behind.sort(dim=-1, stable=True).indices
    worth, order = worth.gather(-1, oldest_first).sort(dim=-1, descending=True, stable=True)
    order = oldest_first.gather(-1, order)
    counts = held.sum(-1)
    stay = pooled(worth, counts.sum(-1, keepdim=True) // sum(heads) - count)
    numbers = (counts - stay).cpu()
    gone = []
    for own, first, end, number in zip(
        *(each.split(heads, 1) for each in (order, stay, counts, numbers)), strict=True
    ):
        rank = first[..., None] + torch.arange(int(number.max()), device=own.device)
        chosen = own.gather(-1, rank.clamp_max(most - 1))
        gone.append((chosen.masked_fill(rank >= end[..., None], -1), number))
    return gone
