"""The small random Llama of the golden data, and a view of each of its layers after a prompt."""

from __future__ import annotations

import json
from functools import cache

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import methods
from tests.methods.golden_data import ROOT

_seen: list[tuple[Tensor, Tensor, Tensor, float]] = []


def _recording(module, query, key, value, attention_mask, scaling=None, **kwargs):
    _seen.append((query, key, value, scaling))
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )


AttentionInterface.register("recording", _recording)
AttentionMaskInterface.register("recording", sdpa_mask)


def build(attention: str) -> LlamaForCausalLM:
    """The stored weights in float32, with this attention function."""
    known = json.loads((ROOT / "tiny_model" / "config.json").read_text())
    names = LlamaConfig().to_dict().keys() & known.keys()
    settings = {name: known[name] for name in names}
    config = LlamaConfig(**settings, attn_implementation=attention, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).eval()
    weights = {k: v.float() for k, v in load_file(ROOT / "tiny_model/model.safetensors").items()}
    model.load_state_dict(weights)
    return model


_recorded = cache(build)


@torch.no_grad()
def layer_views(prompt: Tensor) -> list[methods.LayerView]:
    """A view of every layer after the prompt [L] went through the model."""
    model = _recorded("recording")
    _seen.clear()
    model(prompt[None])
    count = model.config.num_hidden_layers
    weights = [layer.self_attn.o_proj.weight for layer in model.model.layers]
    return [
        methods.LayerView(keys, values, queries, scaling, weights[i], layer=i, num_layers=count)
        for i, (queries, keys, values, scaling) in enumerate(_seen)
    ]
