"""A model folder as transformers reads it: config, tokenizer or processor, and the weights.

Refuses weights that are not those that the config asks for. Must not know prompts or eviction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from harness.models import configs, modelfiles
from harness.models.configs import from_here, read_config
from harness.models.hub import Source
from harness.models.mismatch import differences, poisoned, unset
from harness.models.reading import quiet, reading


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

    def check_names(self, dtype: torch.dtype) -> None:
        """Refuse weights whose names and shapes are not the config's, before they are read."""
        if not modelfiles.quantisation(self.config.to_dict()):
            self._refuse(differences(*self._read(dtype, device_map="meta")))

    def weights(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model with its weights; ValueError where they are not what the config asks for."""
        with poisoned():
            model, found = self._read(dtype)
        self._refuse(differences(model, found) or unset(model))
        with reading(self.pretrained, f"moving it to {device}"):
            return model.to(device).eval()

    def _read(self, dtype: torch.dtype, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model and what from_pretrained could not match."""
        part = f"{self._files()} as a {self.config.model_type} model"
        with reading(self.pretrained, part), quiet():
            return configs.auto_class(self.config).from_pretrained(
                self.source.name,
                config=self.config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused by name
                **self.options,
                **options,
            )

    def _refuse(self, wrong: str) -> None:
        if wrong:
            raise ValueError(
                f"the weights of model {self.pretrained!r} ({self._files()}) are not those that "
                f"its config.json describes: {wrong}; give config.json and weights that were saved "
                "together, or download them again."
            )

    def _files(self) -> str:
        if self.source.folder is None:
            return modelfiles.WEIGHTS
        files = modelfiles.weight_files(self.source.folder, self.config.to_dict())
        return files[0].name if len(files) == 1 else f"{modelfiles.INDEX} and {len(files)} shards"


def open_checkpoint(pretrained: str, source: Source, trust_remote_code: bool) -> Checkpoint:
    """Read everything but the weights. ValueError, one sentence, for what cannot be used."""
    options = from_here(source, trust_remote_code)
    config = read_config(pretrained, source, trust_remote_code)
    takes_images = configs.takes_images(config)
    if not takes_images and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        with reading(pretrained, "config.json"):
            if not trust_remote_code:
                code = ", which comes with custom code" if getattr(config, "auto_map", None) else ""
                raise ValueError(
                    f"a {config.model_type} model of transformers is neither an image-text nor a "
                    f"causal language model{code}"
                )
            if getattr(config, "vision_config", None) is not None:
                raise ValueError(
                    "it reads images by code of its own, and images can be shown only to models "
                    "that transformers knows"
                )
    configs.check_attention(config)
    configs.check_images(config)
    configs.check_heads(pretrained, config)
    configs.check_quantisation(pretrained, config)
    if source.folder is not None:
        configs.check_layers(pretrained, config, modelfiles.check_weights(source.folder))
    reader = AutoProcessor if takes_images else AutoTokenizer
    part = "its processor and tokenizer files" if takes_images else "its tokenizer files"
    with reading(pretrained, part), quiet():
        processor = reader.from_pretrained(source.name, **options)
        if takes_images and getattr(processor, "image_processor", None) is None:
            raise ValueError("there is no preprocessor_config.json that says how images are read")
        configs.check_special(source.folder, processor.tokenizer if takes_images else processor)
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
