"""Which attention layers of a model can be compressed, and the refusal of models that cannot.

Knows transformers' module and cache layout. It must not know eviction methods or prompts.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.engine.attention import NAME

_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo")


@dataclass(frozen=True)
class AttentionLayer:
    """One compressible layer: its index in the cache, and its rank among the compressible ones."""

    module: nn.Module
    index: int
    rank: int

    def output_weight(self, columns: int) -> Tensor | None:
        """Weight [C, columns] of the output projection; None when absent or quantised."""
        for name in _PROJECTIONS:
            projection = getattr(self.module, name, None)
            if isinstance(projection, nn.Linear):
                weight = projection.weight
                fits = weight.is_floating_point() and weight.dim() == 2
                return weight if fits and weight.shape[1] == columns else None
        return None


@dataclass(frozen=True)
class Layout:
    """The compressible layers of one model, in order and by module."""

    layers: tuple[AttentionLayer, ...]
    by_module: dict[int, AttentionLayer]
    keeps_logits: bool

    def find(self, module: nn.Module) -> AttentionLayer | None:
        """The layer of an attention module; None for vision towers and sliding-window layers."""
        return self.by_module.get(id(module))


def prepare(model: PreTrainedModel) -> Layout:
    """Switch the model to this project's attention function and describe its layers.

    ValueError, one sentence, for a model whose cache cannot be compressed.
    """
    _refuse(model)
    full = _full_attention_indices(model)
    modules = _attention_modules(model)
    if any(index not in modules for index in full):
        raise ValueError(
            f"{type(model).__name__} keeps its attention modules where this project cannot find "
            "them; choose a decoder-only model with one self-attention module a layer."
        )
    model.set_attn_implementation(NAME)
    if model.config.get_text_config(decoder=True)._attn_implementation != NAME:
        raise ValueError(
            f"{type(model).__name__} does not run through transformers' AttentionInterface, so "
            "its cache cannot be measured; choose a model that does."
        )
    layers = tuple(AttentionLayer(modules[i], i, rank) for rank, i in enumerate(full))
    parameters = inspect.signature(model.forward).parameters
    return Layout(
        layers, {id(layer.module): layer for layer in layers}, "logits_to_keep" in parameters
    )


def _refuse(model: PreTrainedModel) -> None:
    config = model.config
    text = config.get_text_config(decoder=True)
    reasons = {
        "is an encoder-decoder": getattr(config, "is_encoder_decoder", False),
        "has cross-attention caches": getattr(text, "cross_attention_layers", None)
        or getattr(text, "add_cross_attention", False),
        "caches latent vectors instead of keys": getattr(text, "kv_lora_rank", None),
        "keeps a recurrent state instead of a KV cache": getattr(model, "_is_stateful", False),
        "caps its attention logits": getattr(text, "attn_logit_softcapping", None),
        "has no SDPA attention": not getattr(model.get_decoder(), "_supports_sdpa", False),
        "does not take position_ids": "position_ids"
        not in inspect.signature(model.forward).parameters,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"{type(model).__name__} {reason}, so its cache cannot be evicted; choose a "
                "decoder-only model with softmax self-attention."
            )


def _full_attention_indices(model: PreTrainedModel) -> list[int]:
    layers = DynamicCache(config=model.config).layers
    for index, layer in enumerate(layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ValueError(
                f"layer {index} of {type(model).__name__} has a {type(layer).__name__}, not a "
                "plain KV cache; choose a model with full or sliding-window attention only."
            )
    full = [index for index, layer in enumerate(layers) if type(layer) is DynamicLayer]
    if not full:
        raise ValueError(
            f"{type(model).__name__} has no full-attention layer to compress; choose a model that"
            " has one."
        )
    return full


def _attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    found: dict[int, nn.Module] = {}
    for module in model.get_decoder().modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and "Attention" in type(module).__name__:
            if index in found:
                raise ValueError(
                    f"layer {index} of {type(model).__name__} has several attention modules; "
                    "choose a model with one self-attention module a layer."
                )
            found[index] = module
    return found
