"""Writes a model that was put together here as an ordinary folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from harness.models.reading import quiet


def save(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Write config, weights and processor (or tokenizer) into a folder, which is made.

    Raises:
        ValueError: one sentence: this is not the first process of a torch.distributed group; in
            any other transformers leaves out the weights without a word.
    """
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(
            "the model was not written: only the first process of a distributed group writes one; "
            "load it once before the group begins."
        )
