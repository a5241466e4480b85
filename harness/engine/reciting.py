"""The extra pass in which a model repeats the context of a prompt, for policies that score by it.

What is repeated is what was read: the same tokens, and the same embeddings where images are among
them. The cache of the prompt stays as it was. It must not know policies, cells or tokenizers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from harness.engine.attention import listening
from harness.engine.caches import branch
from harness.engine.layout import Layout
from harness.engine.passes import forward
from harness.engine.rotary import forget_lengths, switches_at
from methods import Recited, most_attention

WORDS = "\n\nRepeat the previous context exactly."  # as the authors of KVzip ask for it
GO_ON = "\n\nRepeat the part of the previous context exactly, starting with "
HINT = 8  # tokens before a part that say where it begins
SINKS = 4  # tokens that are taken for the template where nobody says which it is

# What a decoder takes besides embeddings that a repeated token has as well.
_USUAL = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache_position")


@dataclass(eq=False)
class Recital:
    """Has a model repeat tokens `first` to `end` - 1 of a prompt once it was read.

    ids [L] and positions [1, L] or [3, 1, L] of the prompt; images: whether some are repeated.
    suffix: the tokens [n] that begin an answer. encode: token ids of words. asker: the method that
    needs it.
    """

    model: PreTrainedModel
    layout: Layout
    ids: Tensor
    positions: Tensor
    first: int
    end: int
    images: bool
    suffix: Tensor
    encode: Callable[[str], Sequence[int]]
    asker: str
    embedded: Tensor | None = field(default=None, init=False)  # what the decoder read, [1, n, C]
    more: str = field(default="", init=False)  # what it took besides

    @property
    def key(self) -> Hashable:
        """Recitals of one beginning are the same where this is."""
        return self.first, self.end, tuple(self.suffix.tolist())

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Note what the decoder reads of the prompt in this pass, where images are in it."""
        if not self.images:
            yield
            return

        def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.embedded = named.get("inputs_embeds")
            self.more = next((name for name, each in named.items() if _unusual(name, each)), "")

        hook = self.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def recite(self, cache: Cache, seen: int, both_ways: bool, chunk: int) -> list[Recited]:
        """What keys got, by the rank of their layer.

        cache: of the first `seen` tokens. both_ways: some token saw a later one. chunk: tokens of a
        part. ValueError, one sentence, where the model cannot repeat this context.
        """
        self.check(seen, chunk)
        self._check_images(both_ways)
        parts: list[list[Tensor]] = []
        for start in range(self.first, self.end, chunk):
            span = start, min(start + chunk, self.end)
            listener = _Listener(self.layout, self.first, span)
            positions, inputs = self._inputs(*span)
            with listening(listener):
                own = self._as_of_context(cache, seen)
                forward(self.model, self.layout, own, positions, **inputs)
            parts.append(listener.most)
        forget_lengths(self.model)
        return [Recited(self.first, torch.cat(layer, -1)) for layer in zip(*parts, strict=True)]

    def check(self, seen: int, chunk: int) -> None:
        """ValueError, one sentence, where the model has no positions for a part of `chunk` tokens.

        seen: tokens that are read before it. Nothing needs to be read yet.
        """
        text = self.model.config.get_text_config(decoder=True)
        longest = getattr(text, "max_position_embeddings", None) or sys.maxsize
        words = len(self.encode(GO_ON)) + HINT + len(self.suffix)
        last = int(self.positions[..., : self.end].max()) + words
        last += min(chunk, self.end - self.first)
        smaller = "give a smaller chunk or model.max_length, or choose another method"
        switch = switches_at(self.model)
        if switch is not None and int(self.positions[..., :seen].max()) < switch <= last:
            reason = f"rotates otherwise from {switch:,} tokens on, which that would reach"
            raise self._refused(reason, smaller)
        if last >= longest:
            reason = f"takes {longest:,} positions, and that needs {last + 1:,}"
            raise self._refused(reason, smaller)

    def _check_images(self, both_ways: bool) -> None:
        if self.images and both_ways:
            reason = "lets images see themselves both ways, which repeated ones would not"
            raise self._refused(reason, "choose another method")
        if self.images and (self.more or self.embedded is None):
            what = self.more or "input_ids in place of embeddings"
            reason = f"gives its decoder {what}, which cannot be repeated with an image"
            raise self._refused(reason, "choose another method")

    def _refused(self, reason: str, instead: str) -> ValueError:
        return ValueError(
            f"{self.asker} has the model repeat the context, and {type(self.model).__name__} "
            f"{reason}; {instead}."
        )

    def _as_of_context(self, cache: Cache, seen: int) -> Cache:
        """A cache that shares the context's entries and grows by itself."""
        own = branch(cache, {}, 1)
        for layer in own.layers if seen > self.end else ():
            if type(layer) is not DynamicLayer:
                raise ValueError(
                    f"{self.asker} has the model repeat the context, and {type(layer).__name__} of "
                    f"{type(self.model).__name__} does not go back to its end; use "
                    "protocol=context, or another method."
                )
            assert layer.keys is not None  # the prompt was read
            assert layer.values is not None
            layer.keys = layer.keys[:, :, : self.end]
            layer.values = layer.values[:, :, : self.end]
        return own

    def _inputs(self, start: int, end: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Positions and inputs of a pass: words, the beginning of an answer, and the part."""
        goes_on = start > self.first
        words = torch.tensor([*self.encode(GO_ON if goes_on else WORDS)]).to(self.ids)
        pieces: list[Tensor | slice] = [words, self.suffix, slice(start, end)]
        if goes_on:
            pieces.insert(1, slice(max(self.first, start - HINT), start))
        positions, states, ids = [], [], []
        after = int(self.positions[..., : self.end].max()) + 1
        embed = self.model.get_input_embeddings()
        for piece in pieces:
            if isinstance(piece, slice):
                own = self.positions[..., piece]
                positions.append(own + (after - own.min()))
                ids.append(self.ids[piece])
            else:
                own = torch.arange(after, after + len(piece)).to(self.positions)
                positions.append(own.expand(*self.positions.shape[:-1], -1))
                ids.append(piece)
            if ids[-1].numel():
                after = int(positions[-1].max()) + 1
            if self.embedded is not None:
                here = isinstance(piece, slice)
                states.append(self.embedded[:, piece] if here else embed(ids[-1][None]))
        where = torch.cat(positions, -1)
        if self.images:
            return where, {"inputs_embeds": torch.cat(states, 1)}
        return where, {"input_ids": torch.cat(ids)[None]}


class _Listener:
    """Listens to a pass that repeats a part, and notes what its keys get, by layer."""

    def __init__(self, layout: Layout, sinks: int, span: tuple[int, int]) -> None:
        self.layout, self.sinks, self.span = layout, sinks, span
        self.most: list[Tensor] = []

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> None:
        """Measure the layer, and leave its attention to SDPA."""
        if self.layout.find(module) is not None:
            self.most.append(most_attention(query, key, scaling, self.sinks, self.span))


def _unusual(name: str, given: Any) -> bool:
    """Whether an argument of a decoder holds numbers of a prompt that embeddings do not tell."""
    if name in _USUAL:
        return False
    held = given if isinstance(given, list | tuple) else [given]
    return any(isinstance(each, Tensor) for each in held)
