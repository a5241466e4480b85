"""What the engine must reproduce: the uncompressed model, its attention masked to what is kept.

Separate, simple code: eager attention over the full sequence in one forward pass, no cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from harness.models import Prompt

# kept[layer] is bool [Hkv, boundary]; queries from the boundary on see only these prompt entries.
_state: dict[str, object] = {"kept": {}, "boundary": 0}


def masked_attention(module, query, key, value, attention_mask, scaling=None, **_):
    heads, length, dim = query.shape[1:]
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.transpose(-1, -2) * (dim**-0.5 if scaling is None else scaling)
    logits = logits + attention_mask
    kept, boundary = _state["kept"].get(module.layer_idx), _state["boundary"]
    if kept is not None:
        hidden = torch.zeros(heads, length, length, dtype=torch.bool)
        hidden[:, boundary:, :boundary] = ~kept.repeat_interleave(groups, 0)[:, None]
        logits = logits.masked_fill(hidden, -torch.inf)
    return (logits.softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("oracle", masked_attention)
AttentionMaskInterface.register("oracle", eager_mask)


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run the text decoder with another attention function; the vision tower keeps SDPA."""
    text_config = model.config.get_text_config()
    before = text_config._attn_implementation
    nested = text_config is not model.config
    model.set_attn_implementation({"": "sdpa", "text_config": name} if nested else name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def logits(
    model: PreTrainedModel,
    prompt: Prompt,
    answer: list[int],
    kept: dict[int, Tensor] | None = None,
    boundary: int = 0,
) -> Tensor:
    """Logits [len(answer), V] that choose each answer token, prompt entries masked to `kept`."""
    inputs = dict(prompt.inputs)
    tail = torch.tensor([answer[:-1]], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(tail)], dim=1)
    _state.update(kept=kept or {}, boundary=boundary)
    with attention(model, "oracle"):
        output = model(**inputs, use_cache=False)
    _state.update(kept={}, boundary=0)
    return output.logits[0, -len(answer) :]
