"""The pass over the first tokens of a prompt, and what later tokens and policies need of it.

It must not know which prompts share a prefix or how cells are decoded.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from harness.engine.attention import listening
from harness.engine.inputs import first_part
from harness.engine.layout import Layout
from harness.engine.passes import Stopwatch, clock, forward, sees_later
from harness.engine.reciting import Recital
from harness.engine.rotary import Rotary, Turns
from methods import Policy, Recited
from methods.kernels import column_sums

Requests = Sequence[tuple[Policy, Sequence[int]]]  # for each policy the budgets wanted of it


@dataclass
class Prefix:
    """What the first n tokens of a prompt left behind, before any policy looked.

    cache: their entries [1, Hkv, n, d] a layer. queries: of each compressible layer the last
    `window` of them, [1, H, min(window, n), d]. sums: of each, what its keys collected from all n
    queries, float32 [1, H, n]; None where not asked. turns: as of Prefill. Times in seconds.
    bidirectional: some token sees a later one. recited: of the context that this is, by the key of
    a recital and the tokens of its parts.
    """

    cache: Cache
    tokens: int
    window: int
    queries: list[Tensor]
    sums: list[Tensor] | None
    turns: Turns | None
    prefill_s: float
    score_s: float
    bidirectional: bool
    recited: dict[Hashable, list[Recited]] = field(default_factory=dict)


class Reader:
    """Listens to a pass over a prefix: keeps the last `window` queries of each compressible layer,
    and the sums of attention that its keys collect where they are asked for.
    """

    def __init__(self, layout: Layout, window: int, summing: bool) -> None:
        self.layout, self.window, self.summing = layout, window, summing
        self.queries: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.scoring = Stopwatch()
        self.bidirectional = False

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> None:
        """Note what later tokens need, then leave the layer's attention to SDPA."""
        if self.layout.find(module) is None:
            return
        if mask is not None and not self.queries:
            self.bidirectional = sees_later(mask)
        first = max(0, query.shape[2] - self.window)
        self.queries.append(query[:, :, first:].clone())
        if self.summing and not self.bidirectional:
            with self.scoring.running(query.device):
                self.sums.append(column_sums(query, key, scaling))


def read(
    model: PreTrainedModel,
    layout: Layout,
    window: int,
    summing: bool,
    inputs: Mapping[str, Tensor],
    positions: Tensor,
    tokens: int,
    rotary: Rotary | None = None,
    recital: Recital | None = None,
    parts: Sequence[int] = (),
) -> Prefix:
    """Run the first `tokens` of a prompt, images included, without any policy.

    window: how many last queries to keep. summing: whether to sum attention. recital: of these
    tokens, in parts of so many each. Others as of `prefill`.
    """
    reader, cache = Reader(layout, window, summing), DynamicCache(config=model.config)
    started = clock(positions.device)
    noting = recital.hearing() if recital else nullcontext()
    with listening(reader), rotary.following() if rotary else nullcontext(), noting:
        part = first_part(dict(inputs), tokens)
        forward(model, layout, cache, positions[..., :tokens], **part)
        turns = rotary.now if rotary else None
    elapsed = clock(positions.device) - started
    scored = reader.scoring.seconds()
    sums = reader.sums if summing else None
    times = elapsed - scored, scored
    found = (reader.queries, sums, turns, *times, reader.bidirectional)
    prefix = Prefix(cache, tokens, window, *found)
    if recital is not None and not reader.bidirectional:
        begun = clock(positions.device)
        for size in parts:
            prefix.recited[recital.key, size] = recital.recite(cache, tokens, False, size)
        prefix.score_s += clock(positions.device) - begun
    return prefix


def longest_window(requests: Requests, suffix: int, behind: int) -> int | None:
    """How many last queries these policies need at most; None: all of them. Arguments as of
    `Policy.queries`.
    """
    windows = [policy.queries(suffix, behind) for policy, _ in requests]
    return None if None in windows else max((w for w in windows if w), default=0)


def parts_of(requests: Requests) -> list[int]:
    """Tokens of the parts in which these policies have a context repeated, each number once."""
    wanted = (policy.recites for policy, _ in requests)
    return [*dict.fromkeys(size for size in wanted if size is not None)]


def joined(first: Turns | None, second: Turns | None) -> Turns | None:
    """Turns [1, n, dim] and [1, m, dim] of tokens that follow each other."""
    if first is None or second is None:
        return None
    cosines, sines = (torch.cat(pair, dim=1) for pair in zip(first, second, strict=True))
    return cosines, sines
