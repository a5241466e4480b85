"""Greedy decoding of a batch of cells from their compacted caches.

The model sees original positions; what a cache makes of them is its own affair. It must not know
how the caches were chosen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.engine import graphs
from harness.engine.attention import listening
from harness.engine.caches import CellCache
from harness.engine.compacted import CompactAttention
from harness.engine.layout import Layout
from harness.engine.passes import forward
from harness.engine.processors import logits_processors
from harness.engine.rotary import Rotary
from harness.engine.settings import Generation
from methods.kernels import send


@dataclass
class _Batch:
    """Cells that decode together: their cache and state, the logits [cells, V] that choose their
    next token, and what they have read and written, int64 [cells, L].
    """

    cache: CellCache
    state: _Cells
    logits: Tensor
    history: Tensor

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        device = self.logits.device
        self.cache.select(torch.tensor(rows), device)
        self.state.compact(rows)
        kept = send(torch.tensor(rows), device)
        self.logits, self.history = self.logits[kept], self.history[kept]

    def divided(self) -> list[_Batch]:
        """Cells that only grow, and the others; nothing where all of them are alike."""
        cells = len(self.state.rows)
        grow = graphs.growing(self.cache, cells)
        parts = [grow, [cell for cell in range(cells) if cell not in grow]]
        if not all(parts):
            return []
        caches = self.cache.divide([torch.tensor(part) for part in parts])
        divided = []
        for part, cache in zip(parts, caches, strict=True):
            own = send(torch.tensor(part), self.logits.device)
            state = self.state.part(part)
            divided.append(_Batch(cache, state, self.logits[own], self.history[own]))
        return divided


@dataclass
class _Task:
    """What all cells of a run write: how, and where. positions as in `Decoder.run`; following: the
    position of the first token that is written.
    """

    listener: CompactAttention
    generation: Generation
    positions: Tensor
    following: int


@dataclass
class Decoded:
    """Token ids of each cell, its stop token included, and the raw first logits [cells, V].

    nonfinite: how many of a cell's tokens were chosen by logits that are no numbers.
    """

    token_ids: list[list[int]]
    first_logits: Tensor
    nonfinite: list[int]


class Decoder:
    """Greedy decoding with one model: `stop_ids` end a cell, `to_text` turns ids into text.

    replays: replay steps as CUDA graphs where no cell holds a budget; long answers of other cells
    are then written by themselves. failed: why graphs were given up, or "".
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: Layout,
        stop_ids: frozenset[int],
        to_text: Callable[[list[int]], str],
        replays: bool = False,
    ) -> None:
        self.model = model
        self.layout = layout
        self.stop_ids = stop_ids
        self.to_text = to_text
        self.replays = replays
        self.failed = ""
        self.processors = logits_processors(model)

    def run(
        self,
        cache: CellCache,
        cells: int,
        prompt_ids: Tensor,
        positions: Tensor,
        tail: int,
        logits: Tensor | None,
        generation: Generation,
        rotary: Rotary | None = None,
        ending: frozenset[int] = frozenset(),
    ) -> Decoded:
        """Decode `cells` branches of one prompt; rotary where the cache re-indexes positions.

        prompt_ids [1, L] and positions [1, L] or [3, 1, L] of the whole prompt, of which the last
        `tail` tokens are not in the cache. tail 0: `logits` [1, V] of the prefill give the first
        token. ending: ids that end a cell beside `stop_ids`.
        """
        listener = CompactAttention(self.layout, cache)
        following = int(positions.max()) + 1
        shape = (*positions.shape[:-2], cells, -1)
        turning = rotary.following() if rotary else nullcontext()
        with listening(listener), listener.hearing(), turning:
            listener.last = generation.max_new_tokens == 1
            if tail:
                ids = prompt_ids[:, -tail:].expand(cells, -1)
                logits = self._step(cache, ids, positions[..., -tail:].expand(shape))
            assert logits is not None  # given whenever there is no tail
            first = logits.expand(cells, -1)
            ends = self.stop_ids | ending
            state = _Cells(cells, ends, generation, self.to_text)
            history = prompt_ids.expand(cells, -1)
            logits = _without(first, sorted(ends)) if generation.nonempty else first
            # The raw ones too: ruling a token out hides that its logit is no number.
            hidden = [first.amax(-1)] if generation.nonempty else []
            task = _Task(listener, generation, positions, following)
            self._write(_Batch(cache, state, logits, history), task, 0, hidden)
        return Decoded(state.token_ids, first, state.nonfinite)

    def _write(self, batch: _Batch, task: _Task, start: int, hidden: Sequence[Tensor] = ()) -> None:
        """Let the cells of a batch write from this step on, until each has ended.

        hidden: further peaks [cells] that must be numbers at this step.
        """
        task.listener.cache = batch.cache
        steps = graphs.Steps(partial(self._step, batch.cache), batch.cache, self.replays, start)
        most, positions = task.generation.max_new_tokens, task.positions
        for step in range(start, most):
            if self.replays and step == graphs.PATIENCE and graphs.pays(step, most - step - 2):
                parts = batch.divided()
                for part in parts:
                    self._write(part, task, step)
                if parts:
                    return
            peaks, tokens = self._choose(batch.history, batch.logits)
            rows = batch.state.accept(*_read(tokens, [peaks, *hidden]))
            hidden = ()
            if not rows or step + 1 == most:
                break
            if 2 * len(rows) <= len(tokens):
                batch.keep(rows)
                steps.forget()
                tokens = tokens[send(torch.tensor(rows), tokens.device)]
            if self.processors:
                batch.history = torch.cat([batch.history, tokens[:, None]], dim=1)
            place = positions.new_full(
                (*positions.shape[:-2], len(tokens), 1), task.following + step
            )
            left = most - step - 2
            task.listener.last = not left
            batch.logits = steps(tokens[:, None], place, left)
        if steps.failed:  # what failed once will fail again
            self.replays, self.failed = False, steps.failed

    def _step(self, cache: CellCache, ids: Tensor, positions: Tensor) -> Tensor:
        logits = forward(self.model, self.layout, cache, positions, input_ids=ids)
        cache.evict()
        return logits

    def _choose(self, history: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The highest score of each cell, NaN where any is NaN, and its token, both [cells]."""
        scores = self.processors(history, logits.clone()) if self.processors else logits
        peaks, tokens = scores.max(-1)
        return peaks, tokens


class _Cells:
    """Which cells are still running and what they have written."""

    def __init__(
        self,
        cells: int,
        stop_ids: frozenset[int],
        generation: Generation,
        to_text: Callable[[list[int]], str],
    ) -> None:
        self.token_ids: list[list[int]] = [[] for _ in range(cells)]
        self.nonfinite = [0] * cells
        self.running = [True] * cells
        self.rows = list(range(cells))  # cell of each row of the batch
        self.stop_ids = stop_ids
        self.until = generation.until
        self.to_text = to_text
        # A character may take four byte-level tokens; a few more cover special tokens between them.
        self.reach = 8 + 4 * max((len(s) for s in generation.until), default=0)
        self.free = int(generation.nonempty)  # tokens in which no stop string is looked for

    def accept(self, tokens: Sequence[int], finite: Sequence[bool]) -> list[int]:
        """Append one token to each running cell, chosen by numbers or not; the rows that go on."""
        going = []
        for row, (cell, token) in enumerate(zip(self.rows, tokens, strict=True)):
            if not self.running[cell]:
                continue
            self.token_ids[cell].append(token)
            self.nonfinite[cell] += not finite[row]
            if token in self.stop_ids or self._hits_stop(self.token_ids[cell]):
                self.running[cell] = False
            else:
                going.append(row)
        return going

    def compact(self, rows: Sequence[int]) -> None:
        """Forget all rows of the batch but these."""
        self.rows = [self.rows[row] for row in rows]

    def part(self, rows: Sequence[int]) -> _Cells:
        """These rows as a batch of their own; what its cells write is known here too."""
        own = copy.copy(self)
        own.compact(rows)
        return own

    def _hits_stop(self, ids: list[int]) -> bool:
        if not self.until:
            return False
        text = self.to_text(ids[self.free :][-self.reach :])
        return any(stop in text for stop in self.until)


def _read(tokens: Tensor, peaks: Sequence[Tensor]) -> tuple[list[int], list[bool]]:
    """Tokens, and whether all peaks of a row are numbers, by one copy from the device."""
    # float32 holds every token id, and a peak of a narrower dtype, exactly.
    ids, *rest = torch.stack([each.float() for each in (tokens, *peaks)]).tolist()
    finite = [all(map(math.isfinite, row)) for row in zip(*rest, strict=True)]
    return [int(token) for token in ids], finite


def _without(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """The logits [cells, V] with these ids ruled out."""
    return logits.index_fill(1, torch.tensor(ids, device=logits.device), -torch.inf)
