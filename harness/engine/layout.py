"""Which attention layers of a model can be compressed, and the refusal of models that cannot.

Knows transformers' module and cache layout. It must not know eviction methods or prompts.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)
from transformers.pytorch_utils import Conv1D

from harness.engine.attention import NAME
from harness.models.configs import check_attention

_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo", "c_proj")


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
            if isinstance(projection, nn.Linear | Conv1D):
                turned = isinstance(projection, Conv1D)  # GPT-2 keeps [in, out]
                weight = projection.weight.T if turned else projection.weight
                fits = weight.is_floating_point() and weight.dim() == 2
                return weight if fits and weight.shape[1] == columns else None
        return None


@dataclass(frozen=True)
class Layout:
    """The compressible layers of one model, in order and by module.

    shared: by module, the compressible layer whose keys and values another layer uses as its own.
    whole: what else holds a cache, by index: kinds of layers that are left as they are.
    """

    layers: tuple[AttentionLayer, ...]
    by_module: dict[int, AttentionLayer]
    keeps_logits: bool
    shared: dict[int, AttentionLayer]
    whole: dict[int, str]

    def find(self, module: nn.Module) -> AttentionLayer | None:
        """The layer of an attention module; None for vision towers and layers that stay whole."""
        return self.by_module.get(id(module))


def prepare(model: PreTrainedModel) -> Layout:
    """Switch the model to this project's attention function and describe its layers.

    ValueError, one sentence, for a model whose cache cannot be compressed.
    """
    _refuse(model)
    full, whole = _kinds(model)
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
    by_module = {id(layer.module): layer for layer in layers}
    keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    return Layout(layers, by_module, keeps_logits, _shared(modules, layers), whole)


def _refuse(model: PreTrainedModel) -> None:
    check_attention(model.config)
    reasons = {
        "has no SDPA attention": not getattr(model.get_decoder(), "_supports_sdpa", False),
        "does not take position_ids": "position_ids"
        not in inspect.signature(model.forward).parameters,
        "has a cache of its own": not model._supports_default_dynamic_cache(),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"{type(model).__name__} {reason}, so its cache cannot be evicted; choose a "
                "decoder-only model with softmax self-attention."
            )


def _kinds(model: PreTrainedModel) -> tuple[list[int], dict[int, str]]:
    """Indices of the layers that can be compressed, and what the others are.

    A sliding window that no prompt can outgrow is full attention.
    """
    text = model.config.get_text_config(decoder=True)
    longest = getattr(text, "max_position_embeddings", None) or sys.maxsize
    full, whole = [], {}
    for index, layer in enumerate(DynamicCache(config=model.config).layers):
        if type(layer) is DynamicLayer:
            full.append(index)
        elif type(layer) is DynamicSlidingWindowLayer:
            if layer.sliding_window > longest:
                full.append(index)
            else:
                whole[index] = "sliding window"
        elif isinstance(layer, LinearAttentionLayer):
            whole[index] = "recurrent state"
        elif isinstance(layer, DummyLayer):
            whole[index] = "nothing of its own"
        else:
            raise ValueError(
                f"layer {index} of {type(model).__name__} has a {type(layer).__name__}, which is "
                "no plain KV cache; choose a model with other layers."
            )
    if not full:
        kinds = " and ".join(sorted(set(whole.values()))) or "no cache"
        raise ValueError(
            f"{type(model).__name__} has no full-attention layer to compress (its layers hold: "
            f"{kinds}); choose a model that has one."
        )
    return full, whole


def _shared(
    modules: dict[int, nn.Module], layers: tuple[AttentionLayer, ...]
) -> dict[int, AttentionLayer]:
    """Layers that use keys of a compressible one: the last before them of their own kind."""
    kinds = {layer.index: getattr(layer.module, "layer_type", None) for layer in layers}
    found = {}
    for index, module in sorted(modules.items()):
        if getattr(module, "is_kv_shared_layer", False):
            kind = getattr(module, "layer_type", None)
            donors = [
                layer for layer in layers if layer.index < index and kinds[layer.index] == kind
            ]
            if donors:
                found[id(module)] = donors[-1]
    return found


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
