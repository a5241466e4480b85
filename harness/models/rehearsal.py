"""A first prompt before the run: a chat template, a processor and a model that do not fit together.

Whatever their files say wrong shows in the prompt they make and in one pass over it. Must not know
tasks or eviction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from harness.models.prompts import modality, placeholders
from harness.models.reading import reading

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from harness.models.prompts import Prompt

_LETTERS = "ABCD"
_QUESTION = "Which option is right?\nA. red\nB. blue"
_SIDE = 56  # pixels
_LEAST = 0.6  # of the model's tokens that its tokenizer knows; 0.97 is the least known of any model


def prompt(loaded: LoadedModel) -> Prompt:
    """The prompt of one question, with an image where the model takes them.

    ValueError, one sentence, where its files cannot make one or lose a part of it.
    """
    _check_tokenizer(loaded)
    _check_stops(loaded)
    content: list[dict[str, Any]] = [{"type": "text", "text": _QUESTION}]
    if loaded.takes_images:
        content.insert(0, {"type": "image", "url": Image.new("RGB", (_SIDE, _SIDE), "red")})
    messages = [{"role": "user", "content": content}]
    rendered = loaded.rendered(messages)
    if any(line not in rendered for line in _QUESTION.splitlines()):
        raise ValueError(
            f"the chat template of {loaded.name} leaves out what the user says; give the template "
            "that came with this model."
        )
    made = loaded.prompt(messages)
    if loaded.takes_images and not (bool(made.modality.any()) and _placed(loaded, made)):
        raise ValueError(
            f"a prompt of {loaded.name} has no place for its image: the image token of config.json "
            "is not the one that the chat template and the processor write; give the files that "
            "were saved together."
        )
    return made


def _placed(loaded: LoadedModel, made: Prompt) -> bool:
    """Whether the prompt holds a placeholder that the config names, if it names any."""
    config = loaded.model.config
    known = placeholders(config)
    return not known or bool(modality(config, made.inputs["input_ids"][0]).any())


def forward(loaded: LoadedModel, made: Prompt) -> None:
    """One pass over the prompt; ValueError, one sentence, where the model cannot read it."""
    part = "it cannot read a first prompt"
    remedy = "give the config, processor and weight files that were saved together"
    with reading(loaded.name, part, remedy), torch.inference_mode():
        float(loaded.model(**made.inputs).logits[0, -1, 0])  # waits for the device


def _check_tokenizer(loaded: LoadedModel) -> None:
    """Refuse a tokenizer whose words the model has no rows for, or that knows no letters."""
    tokenizer = loaded.tokenizer
    with reading(loaded.name, "its tokenizer files"):
        added = set(tokenizer.added_tokens_decoder)
        last = max((i for i in tokenizer.get_vocab().values() if i not in added), default=-1)
        letters = {tuple(tokenizer.encode(x, add_special_tokens=False)) for x in _LETTERS}
    rows = loaded.rows
    if rows is not None and last >= rows:
        raise ValueError(
            f"the tokenizer of {loaded.name} counts to {last:,} and its config.json has "
            f"vocab_size={rows:,}; give the tokenizer that was saved with this model."
        )
    if rows is not None and len(tokenizer) < _LEAST * rows:
        raise ValueError(
            f"the tokenizer of {loaded.name} knows {len(tokenizer):,} tokens and its config.json "
            f"has vocab_size={rows:,}; give the tokenizer that was saved with this model."
        )
    if len(letters) == 1:
        raise ValueError(
            f"the tokenizer of {loaded.name} cannot tell the letters A, B, C and D apart; give the "
            "tokenizer files that were saved with this model."
        )


def _check_stops(loaded: LoadedModel) -> None:
    """Refuse a model whose answers never end, or end at a word."""
    tokenizer, ends = loaded.tokenizer, sorted(loaded.stop_ids)
    if not ends:
        raise ValueError(
            f"{loaded.name} names no token of its own that ends an answer, so that every answer "
            "would run to max_new_tokens; put eos_token_id into its generation_config.json."
        )
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    words = [w for i in ends if i not in special and (w := tokenizer.decode([i])).strip().isalnum()]
    if words:
        raise ValueError(
            f"{loaded.name} ends an answer at the word {words[0]!r}, which its eos_token_id means "
            "in its tokenizer; give the config and tokenizer files that were saved together."
        )
