"""Who listens to a generate call inside `harness.evict`: measures its prompt, evicts, then attends.

It must not know prompts' messages, tasks, scoring or the arguments of generate.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from harness.engine.branch import Sequel, compact_layer
from harness.engine.cache import CompactLayer
from harness.engine.capture import Capture
from harness.engine.cells import Cell
from harness.engine.contest import Contest
from harness.engine.layout import AttentionLayer, Layout
from harness.engine.settings import NotFinite
from harness.models.precision import rerun


class Evictor:
    """Listens to one generate call: captures the first `boundary` tokens, evicts, then attends."""

    def __init__(
        self, layout: Layout, cache: Cache, cell: Cell, capture: Capture, sequel: Sequel
    ) -> None:
        self.layout = layout
        self.cache = cache
        self.cell = cell
        self.capture = capture
        self.sequel = sequel
        self.contest = Contest()
        self.told = False
        self.waits = cell.branch.policy is not None and cell.branch.policy.waits
        self.fresh: set[int] = set()  # layers of which this pass read the prompt
        self.peaks: list[Tensor] = []  # what has to be numbers for the answer to mean anything

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor | None:
        """During prefill measure and evict, afterwards attend to what is left; [1, q, H, dv]."""
        layer = self.layout.find(module)
        if layer is None:
            shared = self._share(module, query, scaling)
            if shared is not None:
                return shared
            return self.capture.attend(module, query, key, value, mask, scaling)
        stored = self.cache.layers[layer.index]
        if isinstance(stored, CompactLayer):
            self.fresh.discard(layer.index)
            hidden = self.capture.states.now
            own = hidden, self.contest
            return stored.attend(query, key, value, scaling, False, None, *own)
        output = self.capture.attend(module, query, key, value, mask, scaling)
        self.fresh.add(layer.index)
        if not self.waits:
            self.capture.read()
            self._compact(layer)
        return output

    def settle(self) -> None:
        """After the pass over the prompt: evict if the policy waited for all layers."""
        self.capture.finish()
        for layer in self.layout.layers if self.waits else ():
            self._compact(layer)

    def _compact(self, layer: AttentionLayer) -> None:
        (chosen,) = self.capture.selections[layer.rank].values()
        self._tell(chosen[self.cell.count].fallback)
        peak = chosen[self.cell.count].peak
        self.peaks += [] if peak is None else [peak]
        rotary = self.sequel.rotary
        sequel = replace(self.sequel, turns=rotary.now) if rotary else self.sequel
        self.cache.layers[layer.index] = compact_layer(
            self.cache.layers[layer.index],
            [chosen[self.cell.count]],
            [self.cell],
            layer,
            self.layout,
            sequel,
        )

    def _share(self, module: nn.Module, query: Tensor, scaling: float) -> Tensor | None:
        """Queries of a layer that shares the keys of another; in the pass that evicts from that
        one they still see all of them.
        """
        donor = self.layout.shared.get(id(module))
        if donor is None or donor.index in self.fresh:
            return None
        stored = self.cache.layers[donor.index]
        assert isinstance(stored, CompactLayer)
        return stored.share(query, scaling)

    def _tell(self, fallback: str | None) -> None:
        """Warn, once a call, that the method's own pattern did not fit."""
        if fallback and not self.told:
            self.told = True
            name = getattr(self.cell.branch.policy, "name", "the method")
            warnings.warn(f"{name} did not fit this prompt and budget: {fallback}", stacklevel=2)

    def check(self, model: PreTrainedModel) -> None:
        """NotFinite unless the prompt's logits and the scores of its tokens are numbers."""
        if self.peaks and not all(map(isfinite, torch.stack(self.peaks).tolist())):
            dtype = str(model.dtype).removeprefix("torch.")
            raise NotFinite(
                f"the prompt's logits or the scores of its tokens are not finite (NaN or infinite) "
                f"in {dtype}, so what is kept of it means nothing: {rerun(dtype)}."
            )
