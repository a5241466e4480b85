"""The one forward pass over the prompt, and what it leaves behind.

What survives is the prompt cache and the selections. It must not know how cells are decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from harness.engine.attention import listening
from harness.engine.caches import branch, tensors
from harness.engine.capture import Capture, Selections
from harness.engine.inputs import first_part
from harness.engine.layout import Layout
from harness.engine.passes import clock, forward
from harness.engine.prefixes import joined, parts_of
from harness.engine.reciting import Recital
from harness.engine.rotary import Rotary, Turns
from methods import Recited


@dataclass
class Prefill:
    """What the prompt left behind.

    cache: all prompt entries [1, Hkv, L, d] a layer. logits [1, V] after the last prefilled token.
    selections: one mapping for each compressible layer. Times in seconds. rotary, and the turns
    [1, L, dim] that the keys were rotated by, where a policy re-indexes positions. finite: whether
    all of it is numbers. again: an earlier prompt left the same. search_s: part of prefill_s that
    a sparse one took to choose blocks; computed: the share of them it computed, by layer.
    """

    cache: Cache
    logits: Tensor
    selections: list[Selections]
    prefill_s: float
    score_s: float
    rotary: Rotary | None = None
    turns: Turns | None = None
    finite: bool = True
    again: bool = False
    search_s: float = 0.0
    computed: dict[int, float] | None = None


def prefill(
    model: PreTrainedModel,
    layout: Layout,
    capture: Capture,
    inputs: Mapping[str, Tensor],
    positions: Tensor,
    boundary: int,
    rotary: Rotary | None = None,
    recital: Recital | None = None,
) -> Prefill:
    """Run the first `boundary` prompt tokens (images included) while `capture` listens.

    positions [1, L] or [3, 1, L]. rotary: note what keys are rotated by. recital: what has the
    context repeated, for policies that need it. Where the capture knows a prefix, only what follows
    it is run.
    """
    prefix = capture.prefix
    start, part = 0, first_part(dict(inputs), boundary)
    cache: Cache = DynamicCache(config=model.config)
    if prefix is not None:
        start, cache = prefix.tokens, branch(prefix.cache, {}, 1)
        part = {"input_ids": inputs["input_ids"][:, start:boundary]}
    started = clock(positions.device)
    following = rotary.following() if rotary else nullcontext()
    noting = recital.hearing() if recital and prefix is None else nullcontext()
    with listening(capture), capture.hearing(), following, noting:
        logits = forward(model, layout, cache, positions[..., start:boundary], **part)
        turns = rotary.now if rotary else None
    capture.finish(_recited(capture, recital, cache, boundary) if recital else None)
    elapsed = clock(positions.device) - started
    scored = capture.scoring.seconds()
    spent = elapsed - scored
    if prefix is not None:
        turns = joined(prefix.turns, turns)
        spent, scored = spent + prefix.prefill_s, scored + prefix.score_s
    for index, shape in capture.shapes.items():
        if cache.layers[index].keys.shape != shape:
            raise ValueError(
                f"layer {index} attends to keys of shape {tuple(shape)} but caches "
                f"{tuple(cache.layers[index].keys.shape)}; choose a model that caches its keys."
            )
    found = Prefill(cache, logits, capture.selections, spent, scored, rotary, turns)
    found.finite = _finite(logits, cache)
    if capture.sparse is not None:
        found.search_s = capture.sparse.searching.seconds()
        found.computed = capture.sparse.computed()
    return found


def _recited(
    capture: Capture, recital: Recital, cache: Cache, boundary: int
) -> dict[int, list[Recited]]:
    """By the tokens of a part, what each layer's keys got; one pass for all ratios."""
    parts, prefix = parts_of(capture.requests), capture.prefix
    if prefix is not None:  # it is the context
        return {part: prefix.recited[recital.key, part] for part in parts}
    with capture.scoring.running(capture.modality.device):
        return {part: recital.recite(cache, boundary, capture.both_ways, part) for part in parts}


def _finite(logits: Tensor, cache: Cache) -> bool:
    """Whether logits [1, V], and all keys and values, are numbers.

    Keys count because one of -inf is seen by nobody. Logits of -inf rule a token out on purpose.
    """
    states = [each for layer in cache.layers for each in tensors(layer)]
    largest = [torch.linalg.vector_norm(each, torch.inf) for each in states]
    return bool(torch.stack([logits.amax(), *largest]).isfinite().all())
