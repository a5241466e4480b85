"""Prompts that begin alike: their common part is read once.

Rotations of a question share everything up to its options, and benchmarks ask many questions about
one image or context. Which prompts share is found by comparing tokens, images and positions. A
prompt is cut behind its images and context whether or not another one shares them, so an answer
does not depend on what was asked before. It must not know how cells are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from harness.engine.batches import HELD, fits
from harness.engine.caches import tensors
from harness.engine.capture import Capture
from harness.engine.inputs import first_part
from harness.engine.layout import Layout
from harness.engine.prefill import Prefill, prefill
from harness.engine.prefixes import Prefix, Requests, longest_window, parts_of, read
from harness.engine.reciting import SINKS, Recital
from harness.engine.rotary import Rotary, depends_on_length, forget_lengths
from harness.engine.selfcheck import check_split
from harness.engine.sparsity import Sparsity
from harness.models.memory import ran_out
from harness.models.segments import TEMPLATE, UNKNOWN
from harness.sparse import Pattern
from methods import Policy

if TYPE_CHECKING:
    from harness.models.prompts import Prompt

LEAST = 256  # tokens that are worth a pass of their own

T = TypeVar("T", Prefix, "Whole")


@dataclass(frozen=True)
class Whole:
    """All that is evicted from is shared: what a prefill left, and what it was asked for.

    behind: last tokens that follow the question. recital: the key of how the context was repeated,
    if it was.
    """

    filled: Prefill
    requests: Requests
    behind: int
    recital: Hashable = None


class Prefills:
    """Prefills the prompts of one model, and holds what the last ones began with.

    share: False reads every prompt from its start, in one pass. pattern: of a sparse prefill, which
    reads so too: where a prompt is cut would change which blocks are computed. encode: token ids of
    words, which ask the model to repeat a context.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: Layout,
        share: bool = True,
        pattern: Pattern | None = None,
        encode: Callable[[str], Sequence[int]] | None = None,
    ) -> None:
        self.encode = encode
        self.model, self.layout, self.share, self.pattern = model, layout, share, pattern
        self._held: list[tuple[_Beginning, Prefix | Whole]] = []  # the latest last

    def run(
        self,
        prompt: Prompt,
        positions: Tensor,
        modality: Tensor,
        boundary: int,
        requests: Requests,
        rotary: Rotary | None = None,
    ) -> Prefill:
        """What the first `boundary` tokens leave, and what every policy selects of them.

        positions [1, L] or [3, 1, L]; modality [L]: 0 text, 1 image. Where an earlier prompt began
        so, the times are of what was still to be done.
        """
        asked = _Asked(prompt, positions, modality, boundary, requests, rotary)
        try:
            return self._run(asked)
        except Exception as error:
            if not self._held or not ran_out(error):
                raise
        self.forget()
        return self._run(asked)

    def check(
        self, prompt: Prompt, positions: Tensor, modality: Tensor, boundary: int, requests: Requests
    ) -> None:
        """Refuse, before anything is read, what `run` would refuse of a context to be repeated.

        Arguments as of `run`. ValueError, one sentence.
        """
        asked = _Asked(prompt, positions, modality, boundary, requests, None)
        recital = self._recital(asked)
        if recital is not None:
            for part in parts_of(requests):
                recital.check(boundary, part)

    def forget(self) -> None:
        """Hold nothing of earlier prompts any more."""
        self._held.clear()

    def _run(self, asked: _Asked) -> Prefill:
        tokens = self._cut(asked) if self.share else 0
        if tokens == asked.boundary:
            return self._whole(asked)
        prefix = self._prefix(asked, tokens) if tokens else None
        if prefix is not None and prefix.bidirectional:
            self.share, prefix = False, None  # its images see themselves both ways
            self.forget()
        return self._pass(asked, prefix)

    def _cut(self, asked: _Asked) -> int:
        """Tokens that are read in a pass of their own; 0: there is one pass."""
        tokens = asked.context or 0
        if tokens == asked.boundary:
            return tokens
        if self.pattern is not None:
            return 0
        if tokens < LEAST or 2 * tokens < asked.boundary or depends_on_length(self.model):
            return 0
        if any(_whole_prompt(policy, asked.behind) for policy, _ in asked.requests):
            return 0
        forget_lengths(self.model)
        inputs, kinds = asked.prompt.inputs, asked.modality
        try:
            check_split(self.model, self.layout, inputs, asked.positions, kinds, tokens)
        except ValueError:
            return 0  # a model that answers otherwise when its prompt is split there
        return tokens

    def _whole(self, asked: _Asked) -> Prefill:
        """A prefill of which all is shared: the questions come after the eviction."""

        recital = self._recital(asked)

        def suits(one: Whole) -> bool:
            if recital is not None and one.recital != recital.key:
                return False
            known = {id(policy): set(budgets) for policy, budgets in one.requests}
            return one.behind == asked.behind and all(
                set(budgets) <= known.get(id(policy), set()) for policy, budgets in asked.requests
            )

        begins = asked.beginning(asked.boundary)
        held = self._find(begins, Whole, suits)
        if held is not None:
            return replace(held.filled, prefill_s=0.0, score_s=0.0, search_s=0.0, again=True)
        filled = self._pass(asked, None)
        key = None if recital is None else recital.key
        self._hold(begins, Whole(filled, asked.requests, asked.behind, key), filled.cache)
        return filled

    def _prefix(self, asked: _Asked, tokens: int) -> Prefix:
        # Nothing is behind the context here: what is read after the cut brings its own queries.
        alone = [each for each in asked.requests if not each[0].adds]
        window = longest_window(alone, asked.behind, 0)
        summing = any(policy.adds for policy, _ in asked.requests)
        assert window is not None  # such policies are not cut
        recital, parts = self._recital(asked), parts_of(asked.requests)

        def suits(one: Prefix) -> bool:
            turned = asked.rotary is None or one.turns is not None
            heard = recital is None or all((recital.key, n) in one.recited for n in parts)
            enough = one.window >= window and (one.sums is not None or not summing)
            return turned and heard and enough

        begins = asked.beginning(tokens)
        held = self._find(begins, Prefix, suits)
        if held is not None:
            return replace(held, prefill_s=0.0, score_s=0.0)
        forget_lengths(self.model)
        how = (asked.prompt.inputs, asked.positions, tokens, asked.rotary)
        found = read(self.model, self.layout, window, summing, *how, recital, parts)
        self._hold(begins, found, found.cache)
        return found

    def _pass(self, asked: _Asked, prefix: Prefix | None) -> Prefill:
        forget_lengths(self.model)
        kinds = asked.modality[: asked.boundary]
        found = (self.layout, asked.requests, kinds, asked.behind, prefix, asked.rotary)
        sparse = Sparsity(self.layout, self.pattern) if self.pattern else None
        capture = Capture(*found, sparse, asked.context)
        how = (asked.prompt.inputs, asked.positions, asked.boundary, asked.rotary)
        return prefill(self.model, self.layout, capture, *how, self._recital(asked))

    def _recital(self, asked: _Asked) -> Recital | None:
        """What has the context of a prompt repeated, if a policy needs it."""
        names = [policy.name for policy, _ in asked.requests if policy.recites is not None]
        if not names:
            return None
        if not asked.context or self.encode is None:
            lacks = "this prompt marks none" if self.encode else "there are no words to ask it with"
            raise ValueError(
                f"{names[0]} has the model repeat the context, and {lacks}; choose another method."
            )
        prompt, end = asked.prompt, asked.context
        first = min(_template(prompt), end - 1)
        ids = prompt.inputs["input_ids"][0]
        images = bool(asked.modality[first:end].any())
        suffix = ids[len(ids) - prompt.suffix :]
        about = (ids, asked.positions, first, end, images, suffix, self.encode, names[0])
        return Recital(self.model, self.layout, *about)

    def _find(self, begins: _Beginning, kind: type[T], suits: Callable[[T], bool]) -> T | None:
        for i, (known, what) in enumerate(self._held):
            if isinstance(what, kind) and known == begins and suits(what):
                self._held.append(self._held.pop(i))
                return what
        return None

    def _hold(self, begins: _Beginning, what: Prefix | Whole, cache: Cache) -> None:
        """Hold it in place of the oldest, unless it would take much of the memory."""
        self._held = self._held[1 - HELD :]
        size = sum(each.nbytes for layer in cache.layers for each in tensors(layer))
        if fits(size, self.model.device):
            self._held.append((begins, what))


def _template(prompt: Prompt) -> int:
    """Tokens before what users said, or the usual sinks where nobody tells which these are."""
    name, count = prompt.segments[0] if prompt.segments else (UNKNOWN, 0)
    return SINKS if name == UNKNOWN else count if name == TEMPLATE else 0


def _whole_prompt(policy: Policy, behind: int) -> bool:
    """Whether a policy must be shown all of a prompt in one pass."""
    every = policy.queries(behind) is None and not policy.adds
    return policy.sees_hidden or policy.unrotates or every


@dataclass(frozen=True, eq=False)
class _Asked:
    """The arguments of `Prefills.run`."""

    prompt: Prompt
    positions: Tensor
    modality: Tensor
    boundary: int
    requests: Requests
    rotary: Rotary | None

    @property
    def behind(self) -> int:
        """Last evictable tokens that follow the question."""
        return max(0, self.prompt.suffix - (len(self.modality) - self.boundary))

    @property
    def context(self) -> int | None:
        """Evictable tokens up to the end of the context, or None."""
        marked = self.prompt.context
        return None if marked is None else min(marked, self.boundary)

    def beginning(self, tokens: int) -> _Beginning:
        """All that the first tokens are read from."""
        part = first_part(self.prompt.inputs, tokens)
        return _Beginning({**part, "position_ids": self.positions[..., :tokens]})


@dataclass(frozen=True, eq=False)
class _Beginning:
    """Inputs of a forward pass; equal where all of them are."""

    inputs: dict[str, Tensor]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Beginning) or self.inputs.keys() != other.inputs.keys():
            return False
        pairs = [(each, other.inputs[name]) for name, each in self.inputs.items()]
        if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
            return False
        # Stacked, so that the device is asked once.
        return bool(torch.stack([(a == b).all() for a, b in pairs]).all())
