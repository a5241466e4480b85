"""The one forward pass over the prompt, during which every policy measures every layer.

Only one layer's queries are ever held; what survives is the prompt cache and the selections. It
must not know how cells are decoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from harness.engine.attention import listening
from harness.engine.cache import tensors
from harness.engine.inputs import first_part
from harness.engine.layout import AttentionLayer, Layout
from harness.engine.rotary import Rotary, Turns
from methods import LayerView, Policy, Selection

Selections = dict[int, dict[int, Selection]]  # by id of the policy, then by budget


def clock(device: torch.device) -> float:
    """Seconds, after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Adds up the time of many short pieces of work without waiting for the device in between."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Count the work that is given to the device within the block."""
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(torch.cuda.current_stream(device))
            yield
            end.record(torch.cuda.current_stream(device))
            self._events.append((start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started

    def seconds(self) -> float:
        """The total, after the device has finished."""
        for _, end in self._events[-1:]:
            end.synchronize()
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1e3


@dataclass
class Prefill:
    """What the prompt left behind.

    cache: all prompt entries [1, Hkv, L, d] a layer. logits [1, V] after the last prefilled token.
    selections: one mapping for each compressible layer. Times in seconds. rotary, and the turns
    [1, L, dim] that the keys were rotated by, where a policy re-indexes positions. finite: whether
    all of it is numbers.
    """

    cache: Cache
    logits: Tensor
    selections: list[Selections]
    prefill_s: float
    score_s: float
    rotary: Rotary | None = None
    turns: Turns | None = None
    finite: bool = True


class Capture:
    """Listens to a prefill and lets the policies select from each compressible layer.

    requests: for each policy the budgets wanted of it. modality [L]: 0 text, 1 image. suffix: last
    tokens that follow the question.
    """

    def __init__(
        self,
        layout: Layout,
        requests: Sequence[tuple[Policy, Sequence[int]]],
        modality: Tensor,
        suffix: int = 0,
    ) -> None:
        self.suffix = suffix
        self.layout = layout
        self.requests = requests
        self.modality = modality
        windows = [policy.queries(suffix) for policy, _ in requests]
        self.window = None if None in windows else max((w for w in windows if w), default=0)
        self.selections: list[Selections] = [{} for _ in layout.layers]
        self.scoring = Stopwatch()
        self.shapes: dict[int, torch.Size] = {}  # keys as attention saw them, by cache index
        self._checked_mask: Tensor | None = None
        self._bidirectional = False

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> None:
        """Measure the layer, then leave its attention to SDPA."""
        layer = self.layout.find(module)
        if layer is None:
            return
        self.shapes[layer.index] = key.shape
        if mask is not None and mask is not self._checked_mask:
            self._checked_mask = mask
            self._bidirectional = bool(mask[0, 0].triu(1).any())  # some token sees a later one
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
        length = query.shape[2]
        first = 0 if self.window is None else max(length - self.window, 0)
        view = LayerView(
            keys=key,
            values=value,
            queries=query[:, :, first:],
            scaling=scaling,
            output_weight=layer.output_weight(query.shape[1] * value.shape[-1]),
            layer=layer.rank,
            num_layers=len(self.layout.layers),
            modality=self.modality[None],
            mask=mask[:, :, first:] if mask is not None and self._bidirectional else None,
            suffix=self.suffix,
        )
        for policy, budgets in self.requests:
            chosen = policy.select_many(view, budgets)
            self.selections[layer.rank][id(policy)] = dict(zip(budgets, chosen, strict=True))


def prefill(
    model: PreTrainedModel,
    layout: Layout,
    capture: Capture,
    inputs: Mapping[str, Tensor],
    positions: Tensor,
    boundary: int,
    rotary: Rotary | None = None,
) -> Prefill:
    """Run the first `boundary` prompt tokens (images included) while `capture` listens.

    positions [1, L] or [3, 1, L]. rotary: note what keys are rotated by.
    """
    cache = DynamicCache(config=model.config)
    started = clock(positions.device)
    with listening(capture), rotary.following() if rotary else nullcontext():
        logits = forward(
            model,
            layout,
            cache,
            positions[..., :boundary],
            **first_part(dict(inputs), boundary),
        )
        turns = rotary.now if rotary else None
    elapsed = clock(positions.device) - started
    for index, shape in capture.shapes.items():
        if cache.layers[index].keys.shape != shape:
            raise ValueError(
                f"layer {index} attends to keys of shape {tuple(shape)} but caches "
                f"{tuple(cache.layers[index].keys.shape)}; choose a model that caches its keys."
            )
    scored = capture.scoring.seconds()
    spent = elapsed - scored, scored
    finite = _finite(logits, cache)
    return Prefill(cache, logits, capture.selections, *spent, rotary, turns, finite)


def _finite(logits: Tensor, cache: Cache) -> bool:
    """Whether logits [1, V], and all keys and values, are numbers.

    Keys count because one of -inf is seen by nobody. Logits of -inf rule a token out on purpose.
    """
    states = [each for layer in cache.layers for each in tensors(layer)]
    largest = [torch.linalg.vector_norm(each, torch.inf) for each in states]
    return bool(torch.stack([logits.amax(), *largest]).isfinite().all())


def forward(
    model: PreTrainedModel, layout: Layout, cache: Cache, positions: Tensor, **inputs: Tensor
) -> Tensor:
    """Logits [B, V] after the last token, through the model's own forward."""
    keep = {"logits_to_keep": 1} if layout.keeps_logits else {}
    output = model(**inputs, position_ids=positions, past_key_values=cache, use_cache=True, **keep)
    return output.logits[:, -1]
