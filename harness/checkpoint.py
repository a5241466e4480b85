"""A model folder as transformers reads it: config, tokenizer or processor, and the weights.

Refuses weights that are not those that the config asks for. Must not know prompts or eviction.
"""

from __future__ import annotations

import copy
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import logging

from harness import modelfiles
from harness.hub import Source
from harness.memory import ran_out
from harness.modelfiles import listed

_COMPLETE = "give a folder or hub id of a complete image-text or text model with safetensors weights"
# Tables that a model computes when it is built, and what older code saved of them.
_COMPUTED = re.compile(r"(^|[._])(inv_freq|position_ids)$")
_LEGACY = re.compile(r"(^|\.)attn\.(masked_)?bias$|(^|\.)mtp\.")
_SAMPLES = 4096  # numbers of a matrix that are looked at before all of them are


@contextmanager
def reading(pretrained: str, part: str, remedy: str = _COMPLETE) -> Iterator[None]:
    """Put in one sentence whatever a library or a checkpoint's own code raises meanwhile."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the code of a checkpoint may raise SystemExit, Rust a panic
        if not isinstance(error, Exception) and _is_ours(error):
            raise
        words = reason(error)
        if ran_out(error):
            raise ValueError(
                f"model {pretrained!r} does not fit into memory; choose a smaller model, a smaller "
                "dtype or a larger device."
            ) from error
        if "custom code" in words:
            remedy = "set model.trust_remote_code=true if you trust the code that comes with it"
        raise ValueError(
            f"model {pretrained!r} cannot be loaded: {part}: {words}; {remedy}."
        ) from error


def reason(error: BaseException) -> str:
    """The first sentence of what a library says, with the kind of error where that tells more."""
    try:
        words = " ".join(str(error).split())
    except Exception:  # code of a checkpoint may raise anything
        words = ""
    first = re.split(r"(?<=[^.])\.\s", words, maxsplit=1)[0].rstrip(".")[:240]
    plain = isinstance(error, OSError | ValueError | ImportError)
    if first and (plain or type(error).__module__ != "builtins"):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _is_ours(error: BaseException) -> bool:
    """Whether this project raised it, as its handlers of signals do."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("harness.") and (
        frame.f_globals["__name__"] != __name__
    )


@dataclass(frozen=True)
class Checkpoint:
    """What comes before the weights: where it is, its config, what reads its prompts."""

    pretrained: str
    source: Source
    config: Any
    takes_images: bool
    options: Mapping[str, Any]
    processor: Any
    generation: GenerationConfig

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer; for a text model the two are one object."""
        return self.processor.tokenizer if self.takes_images else self.processor

    def weights(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model with its weights; ValueError where they are not what the config asks for."""
        kind = AutoModelForImageTextToText if self.takes_images else AutoModelForCausalLM
        with reading(self.pretrained, self._files()), quiet(), poisoned():
            model, found = kind.from_pretrained(
                self.source.name,
                dtype=dtype,
                use_safetensors=True,
                attn_implementation="sdpa",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **self.options,
            )
        wrong = differences(model, found) or blanks(model)
        if wrong:
            raise ValueError(
                f"the weights of model {self.pretrained!r} ({self._files()}) are not those that its "
                f"config.json describes: {wrong}; give config.json and weights that were saved "
                "together, or download them again."
            )
        with reading(self.pretrained, f"moving it to {device}"):
            return model.to(device).eval()

    def _files(self) -> str:
        if self.source.folder is None:
            return modelfiles.WEIGHTS
        files = modelfiles.weight_files(self.source.folder, self.config.to_dict())
        return files[0].name if len(files) == 1 else f"{modelfiles.INDEX} and {len(files)} shards"


def open_checkpoint(pretrained: str, source: Source, trust_remote_code: bool) -> Checkpoint:
    """Read everything but the weights. ValueError, one sentence, for what cannot be used."""
    options = from_here(source, trust_remote_code)
    config = read_config(pretrained, source, trust_remote_code)
    takes_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if not takes_images and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        with reading(pretrained, "config.json"):
            if not trust_remote_code:
                raise ValueError(
                    f"a {config.model_type} model is neither an image-text nor a causal language "
                    "model"
                )
    _check_heads(pretrained, config)
    _check_quantisation(pretrained, config)
    if source.folder is not None:
        modelfiles.check_weights(source.folder)
    reader = AutoProcessor if takes_images else AutoTokenizer
    part = "its processor and tokenizer files" if takes_images else "its tokenizer files"
    with reading(pretrained, part), quiet():
        processor = reader.from_pretrained(source.name, **options)
        if takes_images and getattr(processor, "image_processor", None) is None:
            raise ValueError("there is no preprocessor_config.json that says how images are read")
    generation = _generation(pretrained, source, config)
    return Checkpoint(pretrained, source, config, takes_images, options, processor, generation)


def _generation(pretrained: str, source: Source, config: Any) -> GenerationConfig:
    """The settings of generate, which stand in a file of their own or in the config."""
    places = from_here(source, False)
    del places["trust_remote_code"]
    with reading(pretrained, "generation_config.json"), quiet():
        try:
            return GenerationConfig.from_pretrained(source.name, **places)
        except OSError:  # there is no such file
            return GenerationConfig.from_model_config(config)


def read_config(pretrained: str, source: Source, trust_remote_code: bool) -> Any:
    """The config of a model; ValueError, one sentence, where it is none."""
    with reading(pretrained, "config.json"), quiet():
        if source.folder is not None:
            said = modelfiles.read(source.folder / modelfiles.CONFIG)
            if not said.get("model_type") and not said.get("auto_map"):
                raise ValueError("it names no model_type")  # else the folder's name would decide
        return AutoConfig.from_pretrained(source.name, **from_here(source, trust_remote_code))


def from_here(source: Source, trust_remote_code: bool) -> dict[str, Any]:
    """What every from_pretrained is told about where the files are."""
    return {
        "trust_remote_code": trust_remote_code,
        "local_files_only": source.local,
        **({"revision": source.commit} if source.commit else {}),
    }


def _check_heads(pretrained: str, config: Any) -> None:
    with reading(pretrained, "config.json"):
        text = config.get_text_config(decoder=True)
        heads, shared = (getattr(text, f"num_{k}_heads", None) for k in ("attention", "key_value"))
        whole = isinstance(heads, int) and isinstance(shared, int)
        if whole and (shared < 1 or heads % shared):
            raise ValueError(
                f"num_attention_heads={heads} is not a multiple of num_key_value_heads={shared}"
            )


def _check_quantisation(pretrained: str, config: Any) -> None:
    """Refuse quantised weights that transformers cannot read here; it would skip unknown kinds."""
    with reading(pretrained, "quantization_config of config.json"), quiet():
        said = modelfiles.quantisation(config.to_dict())
        if said:
            quantizer = AutoHfQuantizer.from_config(copy.deepcopy(said), pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' reports to itself: what matters of them is raised."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill memory that nobody has written with NaN, so that a table left unset can be seen."""
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def differences(model: PreTrainedModel, found: Mapping[str, Any]) -> str:
    """What from_pretrained could not match, in words; nothing where all tensors are in place."""
    layers = _later_layers(model.config)
    missing = sorted(n for n in found["missing_keys"] if not _COMPUTED.search(n))
    left = sorted(
        name
        for name in found["unexpected_keys"]
        if not any(known.search(name) for known in (_COMPUTED, _LEGACY, layers))
    )
    shapes = sorted(
        f"{name} {list(held)} in the file and {list(wanted)} by the config"
        for name, held, wanted in found["mismatched_keys"]
    )
    parts = {
        "missing": missing,
        "of another shape": shapes,
        "left over": left,
        "broken": list(found["error_msgs"]),
    }
    return ", ".join(
        f"{len(names):,} {'tensor is' if len(names) == 1 else 'tensors are'} {what} "
        f"({listed(names)})"
        for what, names in parts.items()
        if names
    )


def _later_layers(config: Any) -> re.Pattern[str]:
    """Layers behind the last one that only guess further tokens, which no answer here uses."""
    text = config.get_text_config(decoder=True)
    last, more = (
        getattr(text, name, None) or 0 for name in ("num_hidden_layers", "num_nextn_predict_layers")
    )
    numbers = "|".join(str(last + i) for i in range(more)) if isinstance(last, int) else ""
    return re.compile(rf"(^|\.)layers\.({numbers})\." if numbers else r"(?!)")


def blanks(model: PreTrainedModel) -> str:
    """Matrices without one number in them, and tables that nothing has filled, in words."""
    empty = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d) and _all_zero(module.weight)
    ]
    if empty:
        return f"nothing but zeros in {len(empty):,} of its matrices ({listed(empty)})"
    kept = model.state_dict().keys()
    unset = [
        name
        for name, table in model.named_buffers()
        if name not in kept and table.is_floating_point() and bool(table.isnan().any())
    ]
    if unset:
        return f"its code leaves {len(unset):,} tables unset ({listed(unset)})"
    return ""


def _all_zero(weight: Tensor) -> bool:
    if not weight.is_floating_point() or not weight.numel() or weight.is_meta:
        return False
    step = max(1, weight.numel() // _SAMPLES)
    return not bool(weight.reshape(-1)[::step].any()) and not bool(weight.any())
