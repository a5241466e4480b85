"""The engine against the plain model: the same cells, their attention masked instead of compacted.

The first logits that come from a compacted cache are computed a second time from the whole one, in
which each head is hidden what it did not keep. Must not know eviction methods, tiles or kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from harness.engine.answers import Answers
from harness.engine.attention import listening
from harness.engine.caches import branch
from harness.engine.cells import Cell, reindexes
from harness.engine.inputs import first_part
from harness.engine.layout import Layout
from harness.engine.passes import forward
from harness.engine.prefill import Prefill
from harness.engine.rotary import forget_lengths
from harness.engine.settings import Branch, Generation
from harness.engine.sparsity import Sparsity
from methods import merged
from methods.kernels import using

if TYPE_CHECKING:
    from harness.engine.session import Engine
    from harness.models.prompts import Prompt


@dataclass(frozen=True)
class Compared:
    """What came of one prompt.

    differences: of each cell's logits, as a share of their length (`selfcheck.LOGITS` says what is
    noise), inf where some are no numbers; None for cells that re-index positions or hold entries in
    few bits, whose attention no mask describes. batch: how many cells decode together.
    """

    differences: list[float | None]
    batch: int


class Masked:
    """Listens to a pass over tokens behind the eviction and hides what was not kept.

    kept: bool [Hkv, L] by index of the layer.
    """

    def __init__(self, layout: Layout, kept: dict[int, Tensor]) -> None:
        self.layout, self.kept = layout, kept

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor | None:
        """query [1, H, q, d], key and value [1, Hkv, n, d], of all tokens -> [1, q, H, dv]."""
        layer = self.layout.find(module) or self.layout.shared.get(id(module))
        if layer is None:
            return None
        heads, new = query.shape[1:3]
        groups, length = heads // key.shape[1], key.shape[2]
        kept = self.kept[layer.index].repeat_interleave(groups, 0)[:, None]
        seen = kept.new_ones(new, length).tril(length - new).repeat(heads, 1, 1)
        seen[..., : kept.shape[-1]] &= kept
        key, value = (each[0].float().repeat_interleave(groups, 0) for each in (key, value))
        logits = query[0].float() @ key.transpose(-1, -2) * scaling
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        return (weights @ value).transpose(0, 1)[None].to(query.dtype)


@torch.inference_mode()
def compare(engine: Engine, prompt: Prompt, branches: Sequence[Branch]) -> Compared:
    """Compare the logits that follow the prompt, or its first answer token where the prompt is
    evicted whole. A cell that holds its budget evicts only after them. ValueError as `Engine.run`.
    """
    answers, cells = engine.prefilled(prompt, branches, Generation(1))
    if not answers.tail:
        _read_on(answers)
    every = range(answers.filled.logits.shape[-1])
    with using(engine.kernels):
        answers.run_all(cells, every)
    before = _before(engine, answers)
    found: list[float | None] = []
    for i, cell in enumerate(cells):
        if reindexes(cell.branch.policy) or cell.branch.cache is not None:
            found.append(None)
            continue
        kept = _kept(engine.layout, answers.filled, cell)
        own = _merged(engine.layout, answers.filled, before, cell)
        wanted = _masked(engine, answers, own, kept)
        found.append(_difference(wanted.new_tensor(answers.letter_logits[i]), wanted))
    together = [cell for cell in cells if not cell.fetches] or cells
    needs = answers.needs(sorted(together, key=lambda cell: -cell.count))
    return Compared(found, engine.batch_size(needs, answers.prompt_ids.device))


def _read_on(answers: Answers) -> None:
    """Let the likeliest first token follow the prompt, so that a compacted cache is read."""
    token = answers.filled.logits.argmax(-1, keepdim=True)
    places = answers.positions
    following = places.new_full((*places.shape[:-1], 1), int(places.max()) + 1)
    answers.prompt_ids = torch.cat([answers.prompt_ids, token], dim=-1)
    answers.positions = torch.cat([places, following], dim=-1)
    answers.tail = 1


def _before(engine: Engine, answers: Answers) -> Cache:
    """The cache of the prompt up to the eviction, by a pass that no policy listens to."""
    forget_lengths(engine.model)
    cache = DynamicCache(config=engine.model.config)
    part = first_part(answers.prompt.inputs, answers.boundary)
    places = answers.positions[..., : answers.boundary]
    pattern = engine.pattern
    attending = listening(Sparsity(engine.layout, pattern)) if pattern else nullcontext()
    with attending:
        forward(engine.model, engine.layout, cache, places, **part)
    return cache


def _kept(layout: Layout, filled: Prefill, cell: Cell) -> dict[int, Tensor]:
    """What a cell's policy chose, bool [Hkv, L] by index of the layer."""
    kept = {}
    for layer in layout.layers:
        heads, length = filled.cache.layers[layer.index].keys.shape[1:3]
        every = torch.ones(heads, length, dtype=torch.bool, device=filled.logits.device)
        if cell.branch.policy is not None:
            chosen = filled.selections[layer.rank][id(cell.branch.policy)][cell.count].positions[0]
            every = torch.zeros_like(every)
            for head, places in enumerate(chosen):
                every[head, places[places >= 0]] = True
        kept[layer.index] = every
    return kept


def _merged(layout: Layout, filled: Prefill, before: Cache, cell: Cell) -> Cache:
    """The cache with what a cell merges into the entries that it keeps, in a copy."""
    policy = cell.branch.policy
    if policy is None or policy.merge == "none":
        return before
    own = branch(before, {}, 1)
    for layer in layout.layers:
        stored = own.layers[layer.index]
        places = filled.selections[layer.rank][id(policy)][cell.count].positions[0]
        states = stored.keys[0], stored.values[0]
        mixed = merged(*states, places, policy.merge)
        stored.keys, stored.values = (each[None].clone() for each in states)
        head, rank = (places >= 0).nonzero(as_tuple=True)
        stored.keys[0, head, places[head, rank]] = mixed[0][head, rank]
        stored.values[0, head, places[head, rank]] = mixed[1][head, rank]
    return own


def _masked(engine: Engine, answers: Answers, before: Cache, kept: dict[int, Tensor]) -> Tensor:
    """Logits [V] after the last token, of the whole cache with all but `kept` hidden."""
    forget_lengths(engine.model)
    cache = branch(before, {}, 1)  # one of its own, for the pass adds to it
    ids, places = (
        each[..., answers.boundary :] for each in (answers.prompt_ids, answers.positions)
    )
    with listening(Masked(engine.layout, kept)):
        return forward(engine.model, engine.layout, cache, places, input_ids=ids)[0].float()


def _difference(found: Tensor, wanted: Tensor) -> float:
    """The distance of two vectors [V] as a share of the length of the second."""
    share = float((found - wanted).norm() / (wanted - wanted.mean()).norm().clamp(min=1e-12))
    return share if isfinite(share) else inf
