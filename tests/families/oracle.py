"""What the engine must reproduce: `generate` of an untouched model whose attention is masked.

Plain softmax attention in plain torch, a few lines apart from the engine's; only the positions that
were kept come from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "families_oracle"
_state: dict[str, Any] = {"kept": {}, "boundary": 0, "hits": 0}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    kept = _state["kept"].get(id(module))
    if kept is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    _state["hits"] += 1
    boundary, (rows, columns) = _state["boundary"], (query.shape[2], key.shape[2])
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is None:
        allowed = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)[None, None]
    else:
        allowed = attention_mask[..., :columns]
        allowed = allowed if allowed.dtype == torch.bool else allowed == 0
    hidden = torch.zeros(query.shape[1], columns, dtype=torch.bool)
    hidden[:, :boundary] = ~kept.repeat_interleave(groups, 0)
    behind = torch.arange(columns - rows, columns) >= boundary
    seen = allowed & ~(behind[None, :, None] & hidden[:, None])
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def masked(
    model: PreTrainedModel, kept: Mapping[int, Tensor], boundary: int
) -> Iterator[dict[str, Any]]:
    """Within, queries from `boundary` on see of the prompt what is kept.

    kept: bool [Hkv, boundary] by the id of each attention module.
    """
    before = model.config._attn_implementation
    _state.update(kept=dict(kept), boundary=boundary, hits=0)
    model.set_attn_implementation(NAME)
    try:
        yield _state
    finally:
        model.set_attn_implementation(before)
        _state.update(kept={}, boundary=0)


@torch.no_grad()
def generate(model: PreTrainedModel, inputs: Mapping[str, Tensor], tokens: int) -> Tensor:
    """Logits [n, V] that choose each new token of greedy decoding, and no answer ends early."""
    found = model.generate(
        **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return torch.cat(found.logits)
