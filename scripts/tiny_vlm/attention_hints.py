"""An attention function that also reports how much chosen heads look at chosen tokens.

Registered with transformers as `hinted`; the output is that of `sdpa`. While hints are set, each
hinted layer adds -log(attention mass on the wanted tokens) to a running loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "hinted"


@dataclass
class Hint:
    """In `layer`, `heads` of row `rows[i]` at query `at[i]` should look at `wanted[i]`."""

    layer: int
    heads: tuple[int, ...]
    rows: Tensor  # [m]
    at: Tensor  # [m] position among the row's own tokens
    wanted: Tensor  # bool [m, keys]


@dataclass
class PackedHint:
    """In `layer`, `heads` at query `at[b, i]` of row b should look at `wanted[b, i]`.

    For rows in which several questions follow one text: `visible` says what a query may see.
    """

    layer: int
    heads: tuple[int, ...]
    at: Tensor  # [B, m], -1 pads
    wanted: Tensor  # bool [B, m, keys]
    visible: Tensor  # bool [B, m, keys]


_hints: list[Hint | PackedHint] = []
_losses: list[Tensor] = []


def set_hints(hints: list[Hint] | list[PackedHint]) -> None:
    """Use these hints from now on; an empty list turns the extra work off."""
    _hints[:] = hints
    _losses.clear()


def collect() -> Tensor | float:
    """The loss of the last forward pass, sum over hints."""
    loss = torch.stack(_losses).sum() if _losses else 0.0
    _losses.clear()
    return loss


def _loss(hint: Hint, query: Tensor, key: Tensor, scaling: float) -> Tensor:
    group = query.shape[1] // key.shape[1]
    past = key.shape[2] - query.shape[2]
    slots = torch.arange(key.shape[2], device=key.device)
    hidden = slots[None] > (hint.at + past)[:, None]  # [m, keys]
    mass = []
    for head in hint.heads:
        q = query[hint.rows, head, hint.at]  # [m, d]
        k = key[hint.rows, head // group]  # [m, keys, d]
        logits = torch.einsum("md,mkd->mk", q, k) * scaling
        share = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        mass.append((share * hint.wanted).sum(-1))
    return -torch.stack(mass).clamp_min(1e-6).log().mean()


def _packed_loss(hint: PackedHint, query: Tensor, key: Tensor, scaling: float) -> Tensor:
    group = query.shape[1] // key.shape[1]
    at = hint.at.clamp_min(0)[..., None].expand(-1, -1, query.shape[3])
    used, mass = hint.at >= 0, []
    for head in hint.heads:
        q = query[:, head].gather(1, at)  # [B, m, d]
        logits = q @ key[:, head // group].transpose(1, 2) * scaling  # [B, m, keys]
        share = logits.masked_fill(~hint.visible, -1e9).softmax(-1)
        mass.append((share * hint.wanted).sum(-1)[used])
    return -torch.stack(mass).clamp_min(1e-6).log().mean()


def hinted_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs
):
    """`sdpa`, and the loss of this layer's hints."""
    layer = getattr(module, "layer_idx", None)
    for hint in _hints:
        if layer == hint.layer and key.shape[2] == hint.wanted.shape[-1]:
            loss = _packed_loss if isinstance(hint, PackedHint) else _loss
            _losses.append(loss(hint, query, key, scaling))
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
    )


AttentionInterface.register(NAME, hinted_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
