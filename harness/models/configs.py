"""A model's config: read, and refused where nothing could be built from it.

Must not know weights or prompts.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.quantizers import AutoHfQuantizer

from harness.models import modelfiles
from harness.models.hub import Source
from harness.models.reading import quiet, reading

_AMONG_LANGUAGE_MODELS = ("phi4_multimodal",)  # where transformers lists an image-text model


def read_config(pretrained: str, source: Source, trust_remote_code: bool) -> Any:
    """The config of a model; ValueError, one sentence, where it is none."""
    with reading(pretrained, "config.json"), quiet():
        if source.folder is not None:
            said = modelfiles.read(source.folder / modelfiles.CONFIG)
            if not said.get("model_type") and not said.get("auto_map"):
                raise ValueError("it names no model_type")  # else the folder's name would decide
            if said.get("auto_map") and not trust_remote_code:
                _check_known(said.get("model_type"))
        config = AutoConfig.from_pretrained(source.name, **from_here(source, trust_remote_code))
        thinker = getattr(config, "thinker_config", None)  # the part that reads and answers
        return thinker if takes_images(thinker) else config


def _check_known(model_type: object) -> None:
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers knows no {model_type} model, which comes with custom code")


def from_here(source: Source, trust_remote_code: bool) -> dict[str, Any]:
    """What every from_pretrained is told about where the files are."""
    return {
        "trust_remote_code": trust_remote_code,
        "local_files_only": source.local,
        **({"revision": source.commit} if source.commit else {}),
    }


def takes_images(config: Any) -> bool:
    """Whether it is the config of an image-text model."""
    listed = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return listed or getattr(config, "model_type", None) in _AMONG_LANGUAGE_MODELS


def check_images(config: Any) -> None:
    """Refuse an image-text model whose processor makes prompts of its own."""
    if config.model_type == "fuyu":
        raise ValueError(
            "the processor of a fuyu model writes one image and the beginning of the answer into "
            "every prompt, so a chat with images cannot be asked; choose another image-text model."
        )


def auto_class(config: Any) -> Any:
    """The class of transformers that finds the model of a config."""
    listed = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if listed else AutoModelForCausalLM


def check_heads(pretrained: str, config: Any) -> None:
    """Refuse heads that cannot share keys evenly."""
    with reading(pretrained, "config.json"):
        text = config.get_text_config(decoder=True)
        heads, shared = (getattr(text, f"num_{k}_heads", None) for k in ("attention", "key_value"))
        if not isinstance(heads, int) or not isinstance(shared, int):
            return
        if shared < 1 or heads % shared:
            raise ValueError(
                f"num_attention_heads={heads} is not a multiple of num_key_value_heads={shared}"
            )


def check_attention(config: Any) -> None:
    """Refuse, before any weight is read, attention of which no cache can be evicted.

    ValueError, one sentence, says what there is in the place of plain softmax self-attention.
    """
    text = config.get_text_config(decoder=True)
    decoder = MODEL_MAPPING.get(type(text), None)
    plain = getattr(decoder, "_supports_sdpa", True)
    reasons = {
        "is an encoder-decoder": getattr(config, "is_encoder_decoder", False),
        "has cross-attention caches": getattr(text, "cross_attention_layers", None)
        or getattr(text, "add_cross_attention", False),
        "reads its images by cross-attention": getattr(text, "cross_layer_interval", None),
        "caches latent vectors instead of keys": getattr(text, "kv_lora_rank", None),
        "caps its attention logits": getattr(text, "attn_logit_softcapping", None),
        "keeps a recurrent state instead of a KV cache": not plain
        and getattr(decoder, "_is_stateful", False),
        "adds sinks to its attention": not plain and "gpt_oss" in text.model_type,
        "adds positions to its attention logits (ALiBi)": not plain
        and text.model_type in ("bloom", "mpt"),
        "has no SDPA attention in transformers": not plain,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"{_article(text.model_type)} {text.model_type} model {reason}, so its cache "
                "cannot be evicted; choose a decoder-only model with softmax self-attention."
            )


def _article(word: str) -> str:
    return "an" if word.startswith(tuple("aeio")) else "a"


def check_special(folder: Path | None, tokenizer: Any) -> None:
    """ValueError for a template that writes a token which nothing names: it would write none."""
    files = ("tokenizer_config.json", "special_tokens_map.json")
    paths = [] if folder is None else [folder / name for name in files]
    said = {key for path in paths if path.is_file() for key in modelfiles.read(path)}
    for name in ("bos_token", "eos_token"):
        written = name in str(getattr(tokenizer, "chat_template", None))
        if folder and written and getattr(tokenizer, name) is None and name not in said:
            raise ValueError(f"the chat template writes {name} and {files[0]} does not say what")


def check_layers(pretrained: str, config: Any, tensors: int) -> None:
    """Refuse more layers than the files can hold, which would take for ever to build."""
    with reading(pretrained, "config.json"):
        parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
        for part in parts:
            for name in ("num_hidden_layers", "depth"):
                layers = getattr(part, name, None)
                if isinstance(layers, int) and layers > tensors:
                    raise ValueError(f"{name}={layers:,} and the weights are {tensors:,} tensors")


def check_quantisation(pretrained: str, config: Any) -> None:
    """Refuse quantised weights that transformers cannot read here; it would skip unknown kinds."""
    with reading(pretrained, "quantization_config of config.json"), quiet():
        said = modelfiles.quantisation(config.to_dict())
        if said:
            quantizer = AutoHfQuantizer.from_config(copy.deepcopy(said), pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)
