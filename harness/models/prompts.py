"""One prompt as a model takes it, and which of its tokens are images.

Must not know chats, templates or model folders.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Names in a config of tokens whose embeddings come from the images.
PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
_LISTS = ("visual_indicator_token_ids",)


@dataclass
class Prompt:
    """One prompt as the model takes it.

    inputs: arguments of forward, input_ids [1, L] among them. modality [L]: 0 text, 1 image.
    suffix: trailing tokens that follow the last user text. context: tokens up to the end of the
    last image or of the text marked with `"context": True`, whichever is later; None without
    either. cut: tokens that were taken from the middle of the text to fit the model's context.
    segments: what the tokens belong to, see `harness.models.segments`.
    """

    inputs: dict[str, Tensor]
    modality: Tensor
    suffix: int
    context: int | None
    cut: int = 0
    segments: list[tuple[str, int]] = field(default_factory=list)


def told(model: PreTrainedModel, input_ids: Tensor, types: Tensor | None = None) -> Tensor:
    """0 for text and 1 for image tokens, int64 [L], of input_ids [L] without their processor.

    types [1, L]: mm_token_type_ids of a processor. Where there are none, all special tokens count
    that a processor called an image's in prompts of this model (`remember`).
    """
    kinds = modality(model.config, input_ids)
    if types is not None and bool(types.any()):
        return kinds | (types[0] > 0).to(input_ids.dtype)
    marks = torch.tensor(sorted(_marks.get(model, ())), device=input_ids.device)
    return kinds | torch.isin(input_ids, marks).to(input_ids.dtype)


def remember(model: PreTrainedModel, marks: set[int]) -> None:
    """Special tokens that a processor counts among an image's: those of its rows and tiles."""
    _marks.setdefault(model, set()).update(marks)


_marks: WeakKeyDictionary[PreTrainedModel, set[int]] = WeakKeyDictionary()


def modality(config: Any, input_ids: Tensor) -> Tensor:
    """0 for text and 1 for image or video placeholders, int64 [L], of input_ids [L]."""
    kinds = torch.zeros_like(input_ids)
    for placeholder in placeholders(config):
        kinds |= input_ids == placeholder
    return kinds


def placeholders(config: Any) -> set[int]:
    """Token ids that a config, or its part for images, says stand for images or videos."""
    parts = (config, getattr(config, "vision_config", None))
    known = {getattr(part, name, None) for part in parts for name in PLACEHOLDERS}
    known |= {token for name in _LISTS for token in getattr(config, name, None) or ()}
    return {token for token in known if token is not None}
