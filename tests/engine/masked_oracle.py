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

from harness.models.prompts import Prompt

# kept[layer] is bool [Hkv, boundary], what queries from the boundary on see of the prompt, or bool
# [Hkv, rows, length], all that each of them sees.
# rotary: give every key that such a query sees the rotary position of its rank among them.
_state: dict[str, object] = {"kept": {}, "boundary": 0, "rotary": None}


seen: dict[int, Tensor] = {}  # attention weights [H, length, length] of the last pass, by layer


def masked_attention(module, query, key, value, attention_mask, scaling=None, **_):
    heads, length, dim = query.shape[1:]
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scaling = dim**-0.5 if scaling is None else scaling
    logits = query @ key.transpose(-1, -2) * scaling
    logits = logits + attention_mask
    kept, boundary = _state["kept"].get(module.layer_idx), _state["boundary"]
    if kept is not None:
        hidden = torch.zeros(heads, length, length, dtype=torch.bool)
        if kept.dim() == 2:
            hidden[:, boundary:, :boundary] = ~kept.repeat_interleave(groups, 0)[:, None]
        else:
            hidden[:, boundary:] = ~kept.repeat_interleave(groups, 0)
        if _state["rotary"] is not None:
            logits[0, :, boundary:] = scaling * ranked(query[0], key[0], hidden, boundary)
        logits = logits.masked_fill(hidden, -torch.inf)
    weights = logits.softmax(-1)
    seen[module.layer_idx] = weights[0]
    return (weights @ value).transpose(1, 2), None


def turned(vectors, positions, rotary, back=False):
    """vectors [n, d] in float64, turned to these positions or back, pair by pair."""
    inv_freq, factor = rotary
    half = len(inv_freq)
    angle = positions.double()[:, None] * inv_freq.double() * (-1 if back else 1)
    pairs = torch.complex(vectors[:, :half].double(), vectors[:, half : 2 * half].double())
    pairs = pairs * torch.polar(torch.full_like(angle, factor ** (-1 if back else 1)), angle)
    return torch.cat([pairs.real, pairs.imag, vectors[:, 2 * half :].double()], dim=-1)


def ranked(query, key, hidden, boundary):
    """Products [H, rows, n] of queries from the boundary on with the keys they see, by rank."""
    heads, length = key.shape[:2]
    every, products = torch.arange(length), []
    for head in range(heads):
        plain_keys = turned(key[head], every, _state["rotary"], back=True)
        plain_queries = turned(query[head], every, _state["rotary"], back=True)
        for row in range(boundary, length):
            seen = (~hidden[head, row]).nonzero()[:, 0]
            ranks = torch.arange(len(seen))
            keys = turned(plain_keys[seen], ranks, _state["rotary"])
            own = turned(plain_queries[row : row + 1], ranks[-1:], _state["rotary"])
            product = torch.zeros(length, dtype=torch.float64)
            product[seen] = keys @ own[0]
            products.append(product)
    return torch.stack(products).view(heads, length - boundary, length).float()


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
    rotary: tuple[Tensor, float] | None = None,
) -> Tensor:
    """Logits [len(answer), V] that choose each answer token, attention masked to `kept`.

    rotary: inverse frequencies and factor of a model whose cache re-indexes positions.
    """
    inputs = dict(prompt.inputs)
    tail = torch.tensor([answer[:-1]], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(tail)], dim=1)
    _state.update(kept=kept or {}, boundary=boundary, rotary=rotary)
    with attention(model, "oracle"):
        output = model(**inputs, use_cache=False)
    _state.update(kept={}, boundary=0, rotary=None)
    return output.logits[0, -len(answer) :]
