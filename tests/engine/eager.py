"""Attention weights of transformers' own eager code, for oracles."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def eager(model: nn.Module) -> nn.Module:
    """A copy of the model that tells what its layers attend to."""
    own = copy.deepcopy(model)
    own.set_attn_implementation("eager")
    return own


@torch.no_grad()
def weights(model: nn.Module, **inputs: object) -> list[Tensor]:
    """Of each layer [H, q, n]."""
    return [one[0] for one in model(**inputs, output_attentions=True).attentions]
