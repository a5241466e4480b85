"""The answers of one prompt: its cells decoded batch by batch, what each wrote and what it kept.

Must not know how a prompt is prefilled or how policies select.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from harness.engine.batches import Batches
from harness.engine.branch import Sequel
from harness.engine.cells import Cell, on_top
from harness.engine.decode import Decoded, Decoder
from harness.engine.inputs import grids
from harness.engine.kept import Kept
from harness.engine.passes import clock
from harness.engine.prefill import Prefill
from harness.engine.rotary import forget_lengths
from harness.engine.settings import BranchResult, Generation, NoRoom, Shown
from harness.engine.settings import Protocol as EvictionProtocol
from harness.models.memory import ran_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.engine.layout import Layout
    from harness.models.loaded import LoadedModel
    from harness.models.prompts import Prompt


Done = tuple[list[Kept], list[tuple[int, int]], Decoded]  # with bytes fetched, and passes


class Decoding(Protocol):
    """What answers need of an engine."""

    loaded: LoadedModel
    model: PreTrainedModel
    layout: Layout
    decoder: Decoder
    protocol: EvictionProtocol
    batches: Batches

    def needs(self, filled: Prefill, entries: Sequence[int]) -> list[float]:
        """Bytes that each cell needs with at most so many entries a KV head."""

    def batch_size(self, needs: Sequence[float], device: torch.device) -> int:
        """How many of these cells, from the first on, to decode together."""

    def did_not_fit(self, needs: Sequence[float]) -> None:
        """Take smaller batches from now on than one of these cells."""


class Answers:
    """Decodes the cells of one prompt batch by batch and collects what they wrote."""

    def __init__(
        self,
        engine: Decoding,
        prompt: Prompt,
        positions: Tensor,
        modality: Tensor,
        boundary: int,
        generation: Generation,
        filled: Prefill,
        trace: bool,
    ) -> None:
        self.engine = engine
        self.prompt, self.trace = prompt, trace
        self.prompt_ids = prompt.inputs["input_ids"]
        self.positions = positions
        self.modality = modality
        self.image_tokens = int(modality.sum())
        self.boundary = boundary
        self.tail = self.prompt_ids.shape[1] - boundary
        self.extra = on_top(engine.protocol.name, self.tail)
        self.generation = generation
        self.asked_ends = engine.loaded.ending_ids(generation.until_tokens)
        self.filled = filled
        self.token_ids: dict[int, list[int]] = {}
        self.letter_logits: dict[int, list[float]] = {}
        self.kept: dict[int, Kept] = {}
        self.nonfinite: dict[int, int] = {}
        self.fetched: dict[int, tuple[int, int]] = {}
        self.compact_s = 0.0
        self.decode_s = 0.0

    def run_all(self, cells: Sequence[Cell], letter_ids: Sequence[int]) -> None:
        """Decode every cell, the largest first so that cells of equal counts are tiled together.

        Cells that choose what they read in each pass have batches of their own, so that what the
        others read can stay unpacked.
        """
        order = sorted(range(len(cells)), key=lambda i: (cells[i].fetches, -cells[i].count))
        needs = self.needs([cells[i] for i in order])
        start = 0
        while start < len(order):
            size = self.engine.batch_size(needs[start:], self.prompt_ids.device)
            alike = groupby(order[start : start + size], lambda i: cells[i].fetches)
            group = list(next(alike)[1])
            done = self._attempt([cells[i] for i in group])
            if done is None:
                self._shrink(needs[start : start + len(group)])
                continue
            kept, fetched, decoded = done
            picked = decoded.first_logits[:, list(letter_ids)].float().tolist()
            for row, i in enumerate(group):
                self.token_ids[i] = decoded.token_ids[row]
                self.letter_logits[i] = picked[row]
                self.kept[i] = kept[row]
                self.fetched[i] = fetched[row]
                self.nonfinite[i] = decoded.nonfinite[row]
            start += len(group)

    def needs(self, cells: Sequence[Cell]) -> list[float]:
        """Bytes that each cell needs while it decodes.

        On a CPU all that a batch reads lies there twice once some of it is unpacked.
        """
        packed = any(cell.branch.cache is not None and not cell.fetches for cell in cells)
        twice = packed and self.prompt_ids.device.type == "cpu"
        most = [self._most_entries(cell) * (1 + (twice and not cell.fetches)) for cell in cells]
        return self.engine.needs(self.filled, most)

    def _most_entries(self, cell: Cell) -> int:
        """Of a KV head, at the longest answer."""
        grown = self.generation.max_new_tokens
        if cell.holds:
            grown = min(grown, cell.slack + cell.lag + self.extra)
        return cell.count + self.tail + grown

    def _attempt(self, cells: Sequence[Cell]) -> Done | None:
        """One batch; None when it does not fit into memory."""
        try:
            return self._batch(cells)
        except Exception as error:
            if not ran_out(error):
                raise
            return None  # the traceback holds the batch's tensors: free them before trying again

    def _batch(self, cells: Sequence[Cell]) -> Done:
        engine, device = self.engine, self.prompt_ids.device
        forget_lengths(engine.model)
        started = clock(device)
        kinds, filled = self.modality[: self.boundary], self.filled
        sequel = Sequel(kinds, self.tail, self.extra, filled.rotary, filled.turns)
        batch = engine.batches.build(filled, engine.layout, cells, sequel, self.trace)
        compacted = clock(device)
        decoded = engine.decoder.run(
            batch.cache,
            len(cells),
            self.prompt_ids,
            self.positions,
            self.tail,
            None if self.tail else filled.logits,
            self.generation,
            filled.rotary,
            self.asked_ends,
        )
        self.compact_s += compacted - started
        self.decode_s += clock(device) - compacted
        return batch.kept, batch.fetched(), decoded

    def _shrink(self, needs: Sequence[float]) -> None:
        """NoRoom where it was a single cell that did not fit."""
        if len(needs) == 1:
            raise NoRoom(
                f"one cell of {self.boundary} prompt tokens does not fit into memory; use a "
                "shorter prompt, a smaller dtype or a larger device."
            )
        self.engine.did_not_fit(needs)

    def results(self, cells: Sequence[Cell], letters: Sequence[str]) -> list[BranchResult]:
        """One result a cell, in the order of the branches."""
        seconds = {
            "prefill": self.filled.prefill_s,
            "score": self.filled.score_s,
            "compact": self.compact_s,
            "decode": self.decode_s,
            "search": self.filled.search_s,
        }
        count = len(cells)
        share = {name: value / count for name, value in seconds.items()}
        shown = self._shown() if self.trace else None
        return [self._result(i, cell, letters, dict(share), shown) for i, cell in enumerate(cells)]

    def _shown(self) -> Shown:
        tokens = self.engine.loaded.pieces(self.prompt_ids[0].tolist())
        return Shown(tokens, grids(self.engine.model.config, self.prompt.inputs, self.modality))

    def _result(
        self,
        i: int,
        cell: Cell,
        letters: Sequence[str],
        timings: dict[str, float],
        shown: Shown | None,
    ) -> BranchResult:
        kept = self.kept[i]
        decode, ids = self.engine.loaded.decode, self.token_ids[i]
        ends = self.engine.loaded.stop_ids | self.asked_ends
        answer = [token for token in ids if token not in ends]
        whole = decode(answer)
        begun = len(decode(answer[:1])) if self.generation.nonempty else 0
        text = self.generation.cut(whole, begun)
        scored = len(answer) if text == whole else _tokens_of(text, answer, decode)
        scored = scored or 1  # an empty answer is what its first token, a stop, decided
        length = self.prompt_ids.shape[1]
        # What was kept decides, not what was asked: `full` ignores its budget.
        cache = cell.branch.cache
        packed = cache is not None and cache.residual < self.boundary
        evicted = kept.tokens < self.boundary or packed
        exposed = scored - (self.boundary == length if evicted else self._free_tokens(cell))
        return BranchResult(
            text=text,
            token_ids=ids,
            exposed_tokens=int(max(0, exposed)),
            evictable_tokens=self.boundary,
            prompt_tokens=length,
            image_tokens=self.image_tokens,
            kept_tokens=kept.tokens,
            kept_image=kept.image,
            kept_text=kept.tokens - kept.image,
            cache_bytes=kept.cache_bytes,
            full_cache_bytes=kept.full_cache_bytes,
            window=kept.window,
            adaptive=kept.adaptive,
            fallback=kept.fallback,
            letter_logits=dict(zip(letters, self.letter_logits[i], strict=True)),
            timings=timings,
            truncated_tokens=self.prompt.cut,
            segments=self.prompt.segments,
            kept_shares=None if kept.shares is None else kept.shares.tolist(),
            shown=shown,
            computed_blocks=self.filled.computed,
            host_bytes=kept.host_bytes,
            fetched_bytes=self.fetched[i][0],
            passes=self.fetched[i][1],
            nonfinite_tokens=self.nonfinite[i] if self.filled.finite and kept.finite else len(ids),
        )

    def _free_tokens(self, cell: Cell) -> float:
        """How many answer tokens a cell that lost nothing of its prompt gives before it evicts, or
        packs entries.
        """
        cache = cell.branch.cache
        if cache is not None:
            return max(1, cache.residual + cache.step - self.boundary - self.tail + 1)
        if not cell.holds:
            return torch.inf
        # Before the pass for token j > 1 begins, tail + j - 2 tokens came in.
        return max(1, cell.slack + cell.lag + self.extra - self.tail + 2)


def _tokens_of(text: str, ids: list[int], decode: Callable[[list[int]], str]) -> int:
    """How many of the tokens it takes to write the text that survived the stop strings."""
    needed = len(text.rstrip())
    return next((n for n in range(len(ids)) if len(decode(ids[:n])) >= needed), len(ids))
