"""Who listens to the one forward pass over the prompt: every policy measures every layer.

Only one layer's queries are ever held. It must not know how cells are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.engine.hidden import Hidden
from harness.engine.layout import AttentionLayer, Layout
from harness.engine.passes import Stopwatch, sees_later
from harness.engine.prefixes import Prefix, Requests, longest_window
from harness.engine.rotary import Rotary, Turned
from harness.engine.sparsity import Sparsity
from methods import LayerView, Policy, Rated, Recited, Selection

Selections = dict[int, dict[int, Selection]]  # by id of the policy, then by budget


class _Asked(NamedTuple):
    """A policy that waits for numbers [n] of a layer before it selects from it."""

    policy: Policy
    budgets: Sequence[int]
    view: LayerView
    numbers: Tensor


class _Later(NamedTuple):
    """A policy that selects from a layer when the context was repeated."""

    policy: Policy
    budgets: Sequence[int]
    view: LayerView


@dataclass
class _Waiting:
    """A policy that selects when it has rated all layers, and what it has so far, by layer."""

    policy: Policy
    budgets: Sequence[int]
    rated: dict[int, Rated] = field(default_factory=dict)


class Capture:
    """Listens to a prefill and lets the policies select from each compressible layer.

    requests: for each policy the budgets wanted of it. modality [L]: 0 text, 1 image. suffix: last
    tokens that follow the question. prefix: what was read before this pass. rotary: what queries
    are rotated by, for policies that undo it. sparse: what attends in this pass; None: SDPA.
    context: tokens up to the end of the context; None: the prompt marks none.
    """

    def __init__(
        self,
        layout: Layout,
        requests: Requests,
        modality: Tensor,
        suffix: int = 0,
        prefix: Prefix | None = None,
        rotary: Rotary | None = None,
        sparse: Sparsity | None = None,
        context: int | None = None,
    ) -> None:
        self.sparse = sparse
        self.suffix = suffix
        self.prefix = prefix
        self.rotary = rotary
        self.layout = layout
        self.requests = requests
        self.modality = modality
        self.context = context
        behind = 0 if context is None else len(modality) - context
        self.window = longest_window(requests, suffix, behind)
        self.selections: list[Selections] = [{} for _ in layout.layers]
        self.scoring = Stopwatch()
        self.shapes: dict[int, torch.Size] = {}  # keys as attention saw them, by cache index
        self._checked_mask: Tensor | None = None
        self._bidirectional = False
        self._asked: list[_Asked] = []
        self._waiting: dict[int, _Waiting] = {}  # by id of the policy
        self._listening: list[_Later] = []
        self.states = Hidden()

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Note what enters attention where a policy asks for hidden states."""
        wanted = any(policy.sees_hidden for policy, _ in self.requests)
        assert not wanted or self.prefix is None  # such prompts are not cut
        with self.states.hearing(self.layout.layers if wanted else ()):
            yield

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor | None:
        """Measure the layer, then attend; None leaves that to SDPA."""
        layer = self.layout.find(module)
        if layer is not None:
            self._measure(layer, query, key, value, mask, scaling)
        if self.sparse is None:
            return None
        return self.sparse.attend(module, query, key, value, mask, scaling)

    def _measure(
        self,
        layer: AttentionLayer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> None:
        self.shapes[layer.index] = key.shape
        if mask is not None and mask is not self._checked_mask:
            self._checked_mask = mask
            self._bidirectional = sees_later(mask)
        if not self.requests:
            return
        with self.scoring.running(query.device):
            self._select(layer, query, key, value, mask, scaling)

    def _select(
        self,
        layer: AttentionLayer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> None:
        """Let every policy measure this layer."""
        queries, earlier = query, None
        if self.prefix is not None:
            queries = torch.cat([self.prefix.queries[layer.rank], query], dim=2)
            sums = self.prefix.sums
            earlier = sums[layer.rank] if sums is not None else None
        held = queries.shape[2]
        first = 0 if self.window is None else max(held - self.window, 0)
        view = LayerView(
            keys=key,
            values=value,
            queries=queries[:, :, first:],
            scaling=scaling,
            output_weight=layer.output_weight(query.shape[1] * value.shape[-1]),
            layer=layer.rank,
            num_layers=len(self.layout.layers),
            modality=self.modality[None],
            mask=mask[:, :, first:] if mask is not None and self._bidirectional else None,
            suffix=self.suffix,
            earlier=earlier,
            hidden=self.states.now,
            rotation=self._rotation(),
            context=self.context,
        )
        none = query.new_empty(*query.shape[:2], 0, query.shape[3])  # a slice holds all
        keys_alone = replace(view, queries=none, mask=None, earlier=None)
        for policy, budgets in self.requests:
            if policy.recites is not None:
                self._listening.append(_Later(policy, budgets, replace(keys_alone, hidden=None)))
                continue
            numbers = policy.asks(view)
            if numbers is None:
                self._choose(policy, budgets, view)
            else:
                self._asked.append(_Asked(policy, budgets, keys_alone, numbers))

    @property
    def both_ways(self) -> bool:
        """Whether some token of this pass saw a later one."""
        return self._bidirectional

    def _rotation(self) -> Turned | None:
        """How this pass rotates; who undoes it needs all queries, and then there is no prefix."""
        turns = self.rotary.now if self.rotary and self.prefix is None else None
        return Turned(self.rotary, turns) if self.rotary and turns else None

    def finish(self, recited: Mapping[int, Sequence[Recited]] | None = None) -> None:
        """When every layer was shown: let policies select that asked for numbers of the layers,
        which are read all at once, for the context to be repeated, or that waited for all layers.

        recited: by the tokens of a part, what each layer's keys got.
        """
        self.read()
        listening, self._listening = self._listening, []
        if listening:
            assert recited is not None  # there are such policies
            with self.scoring.running(self.modality.device):
                for each in listening:
                    heard = recited[each.policy.recites or 0][each.view.layer]
                    self._choose(each.policy, each.budgets, replace(each.view, recited=heard))
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        with self.scoring.running(self.modality.device):
            for one in waiting.values():
                chosen = one.policy.select_layers(list(one.rated.values()))
                for layer, selections in zip(one.rated, chosen, strict=True):
                    self._note(layer, one.policy, one.budgets, selections)

    def read(self) -> None:
        """Read what policies asked for, and let them go on."""
        asked, self._asked = self._asked, []
        if not asked:
            return
        with self.scoring.running(asked[0].numbers.device):
            read = torch.stack([each.numbers for each in asked]).tolist()
            for each, numbers in zip(asked, read, strict=True):
                self._choose(each.policy, each.budgets, replace(each.view, answers=numbers))

    def _choose(self, policy: Policy, budgets: Sequence[int], view: LayerView) -> None:
        if policy.waits:
            waiting = self._waiting.setdefault(id(policy), _Waiting(policy, budgets))
            waiting.rated[view.layer] = policy.rate(view, budgets)
        else:
            self._note(view.layer, policy, budgets, policy.select_many(view, budgets))

    def _note(
        self, layer: int, policy: Policy, budgets: Sequence[int], chosen: Sequence[Selection]
    ) -> None:
        self.selections[layer][id(policy)] = dict(zip(budgets, chosen, strict=True))
