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
# merge: what of the prompt is not kept is merged into what is, by this rule, for such queries.
_state: dict[str, object] = {"kept": {}, "boundary": 0, "rotary": None, "merge": None}


seen: dict[int, Tensor] = {}  # attention weights [H, length, length] of the last pass, by layer
states: dict[int, tuple[Tensor, Tensor]] = {}  # its queries [H, length, d] scaled, keys


def masked_attention(module, query, key, value, attention_mask, scaling=None, **_):
    heads, length, dim = query.shape[1:]
    groups = heads // key.shape[1]
    plain = key, value
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scaling = dim**-0.5 if scaling is None else scaling
    states[module.layer_idx] = query[0] * scaling, plain[0][0]
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
    if kept is None or _state["merge"] is None:
        weights = logits.softmax(-1)
        seen[module.layer_idx] = weights[0]
        return (weights @ value).transpose(1, 2), None
    mixed = merged(plain[0][0], plain[1][0], kept, _state["merge"])
    key, mixed_value = (each.repeat_interleave(groups, 0)[None] for each in mixed)
    later = (
        query[:, :, boundary:] @ key.transpose(-1, -2) * scaling + attention_mask[..., boundary:, :]
    )
    later = later.masked_fill(hidden[:, boundary:], -torch.inf)
    first = logits[:, :, :boundary].softmax(-1) @ value
    return torch.cat([first, later.softmax(-1) @ mixed_value], 2).transpose(1, 2), None


def merged(keys, values, kept, how):
    """Keys and values [Hkv, length, d] of which kept bool [Hkv, boundary] take in the others, one
    by one in float64.
    """
    mixed = keys.double(), values.double()
    for head, stays in enumerate(kept):
        own, gone = stays.nonzero()[:, 0].tolist(), (~stays).nonzero()[:, 0].tolist()
        units = keys[head].double() / keys[head].double().norm(dim=-1, keepdim=True)
        similar = (units[gone] @ units[own].T).tolist()
        for states, found in zip((keys[head].double(), values[head].double()), mixed, strict=True):
            parts = {place: [states[place]] for place in own}
            for row, place in zip(similar, gone, strict=True):
                target = own[row.index(max(row))]
                weight = {"average": 1.0, "pivot": 0.5, "weighted": max(row)}[how]
                more = 0.5 * states[target] if how == "pivot" else 0.0
                parts[target].append(weight * states[place] + more)
            for place, both in parts.items():
                found[head, place] = torch.stack(both).mean(0)
    return [each.float() for each in mixed]


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
    merge: str | None = None,
) -> Tensor:
    """Logits [len(answer), V] that choose each answer token, attention masked to `kept`.

    rotary: inverse frequencies and factor of a model whose cache re-indexes positions. merge: how
    what is not kept goes into what is.
    """
    inputs = dict(prompt.inputs)
    tail = torch.tensor([answer[:-1]], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(tail)], dim=1)
    _state.update(kept=kept or {}, boundary=boundary, rotary=rotary, merge=merge)
    with attention(model, "oracle"):
        output = model(**inputs, use_cache=False)
    _state.update(kept={}, boundary=0, rotary=None, merge=None)
    return output.logits[0, -len(answer) :]
