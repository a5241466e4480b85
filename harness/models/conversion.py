"""From a GGUF file to a folder of save_pretrained; must not know where either is kept."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from harness.models.mismatch import differences, poisoned, unset
from harness.models.reading import quiet, reading
from harness.models.saving import save

_REMEDY = "download it again, or give a folder written by save_pretrained"


def convert(pretrained: str, file: Path, folder: Path) -> None:
    """Write config, tokenizer and weights of a text model in a GGUF file as an ordinary folder.

    Weights become float32, in which a block is unpacked; float16 and bfloat16 would round them.

    Raises:
        ValueError: one sentence: the file cannot be read, or is not the model that it describes.
    """
    place, options = str(file.parent), {"gguf_file": file.name, "local_files_only": True}
    with reading(pretrained, "its GGUF file", _REMEDY), quiet():
        _check_start(file)
        config = AutoConfig.from_pretrained(place, **options)
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        with poisoned():
            model, found = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
        if wrong := differences(model, found) or unset(model):
            raise ValueError(f"its weights are not those that it describes: {wrong}")
    model.hf_quantizer = None  # the weights are plain now
    model.config.__dict__.pop("quantization_config", None)
    save(model, tokenizer, folder)


def _check_start(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError("it does not begin as such a file does")
