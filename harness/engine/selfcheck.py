"""Whether a model answers the same when its prompt is split: what makes eviction in between mean
something.

Two things are compared on the first prompt of each kind, whose cost is three passes over it: what
the tokens before the split leave in the cache when those behind it are others, and the logits of
this project's passes at ratio 0 with those of `generate`. Must not know eviction methods or cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from harness.engine.inputs import first_part
from harness.engine.layout import Layout
from harness.engine.passes import forward
from harness.models.reading import quiet

#: Largest distance of two vectors as a share of the length of one: logits of passes of other
#: lengths, and entries of the cache from passes of one length, which agree to the last bit but for
#: mixtures of experts.
LOGITS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
ENTRIES = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}

Kind = tuple[object, ...]


@dataclass(frozen=True)
class Found:
    """Differences as shares: of the logits after the prompt, and of the entries before the split.

    0 where some number is not finite, which is told elsewhere.
    """

    logits: float
    entries: float


_known: WeakKeyDictionary[PreTrainedModel, dict[Kind, Found]] = WeakKeyDictionary()


def check_split(
    model: PreTrainedModel,
    layout: Layout,
    inputs: dict[str, Tensor],
    positions: Tensor,
    modality: Tensor,
    boundary: int,
    generate: Callable[..., Any] | None = None,
) -> None:
    """Check the first prompt of each kind: which inputs it has, and what is behind the split.

    inputs: of one prompt, input_ids [1, L] among them. positions [1, L] or [3, 1, L]. modality
    [L]: 0 text, 1 image. boundary: tokens before the split. generate: the model's own, where
    something else stands in its place. ValueError, one sentence, where the split changes more than
    the dtype explains.
    """
    length = inputs["input_ids"].shape[1]
    kind = (*sorted(inputs), bool(modality.any()), min(length - boundary, 2))
    known = _known.setdefault(model, {})
    if kind not in known:
        own = generate or model.generate
        known[kind] = compare(model, layout, inputs, positions, modality, boundary, own)
    found, allowed = known[kind], LOGITS[model.dtype]
    where = f"token {boundary:,} of {length:,}"
    remedy = "so an eviction there would not be all that changes; use protocol=paper"
    if found.entries > ENTRIES[model.dtype]:
        raise ValueError(
            f"{type(model).__name__} lets the tokens before {where} see those behind it, {remedy}."
        )
    if found.logits > allowed:
        raise ValueError(
            f"{type(model).__name__} answers otherwise when its prompt is split after {where} (its "
            f"logits differ by {100 * found.logits:.2g} %, and {100 * allowed:g} % is noise), "
            f"{remedy} or another model."
        )


def findings(model: PreTrainedModel) -> dict[Kind, Found]:
    """What was found of a model, by kind of prompt."""
    return dict(_known.get(model, {}))


@torch.no_grad()
def compare(
    model: PreTrainedModel,
    layout: Layout,
    inputs: dict[str, Tensor],
    positions: Tensor,
    modality: Tensor,
    boundary: int,
    generate: Callable[..., Any],
) -> Found:
    """The differences of one prompt; arguments as in `check_split`."""
    with quiet():
        answer = generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    whole = answer.logits[0].float()
    ids = inputs["input_ids"]
    cache = DynamicCache(config=model.config)
    first = first_part(inputs, boundary)
    logits = forward(model, layout, cache, positions[..., :boundary], **first)
    if boundary < ids.shape[1]:
        rest = positions[..., boundary:]
        logits = forward(model, layout, cache, rest, input_ids=ids[:, boundary:])
    centred = whole - whole.mean()
    share = _share(logits.float() - whole, centred)
    other = _others(ids, modality, boundary)
    if other is None:
        return Found(share, 0.0)
    changed = DynamicCache(config=model.config)
    every = first_part({**inputs, "input_ids": other}, ids.shape[1])
    forward(model, layout, changed, positions, **every)
    return Found(share, _moved(layout, answer.past_key_values, changed, boundary))


def _others(ids: Tensor, modality: Tensor, boundary: int) -> Tensor | None:
    """The prompt [1, L] with other text behind the boundary; None where there is none to change."""
    words = ids[0, modality == 0].unique()
    if boundary == ids.shape[1] or len(words) < 2:
        return None
    tail = ids[:, boundary:]
    return torch.cat([ids[:, :boundary], torch.where(tail == words[0], words[1], words[0])], dim=1)


def _moved(layout: Layout, one: Cache, other: Cache, boundary: int) -> float:
    """The largest difference of a layer's keys before the boundary."""
    pairs = [(one.layers[each.index].keys, other.layers[each.index].keys) for each in layout.layers]
    return max(
        _share((a - b)[:, :, :boundary].float(), a[:, :, :boundary].float()) for a, b in pairs
    )


def _share(difference: Tensor, of: Tensor) -> float:
    found = float(difference.norm() / of.norm().clamp(min=1e-12))
    return found if found == found and found != float("inf") else 0.0
