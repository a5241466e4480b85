"""What a model says without its weights: its tokenizer, its context, whether it takes images.

Knows model folders and the hub; must not know tasks.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from typing import Any

from transformers import AutoTokenizer

from harness.errors import UserError
from harness.models import configs
from harness.models.configs import from_here, read_config
from harness.models.hub import locate
from harness.models.reading import quiet, reading
from harness.settings.config import ModelConfig


@cache
def load(pretrained: str, revision: str | None, trust_remote_code: bool) -> tuple[Any, str]:
    """The tokenizer and 16 hex digits of how it splits text.

    Raises:
        UserError: it cannot be had.
    """
    try:
        source = locate(pretrained, revision)
        with reading(pretrained, "its tokenizer files"), quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                source.name, **from_here(source, trust_remote_code)
            )
    except ValueError as error:
        raise UserError(
            f"The tokenizer that the task's prompts are made with cannot be had: {error}"
        ) from error
    return tokenizer, fingerprint(tokenizer)


@cache
def context(pretrained: str, revision: str | None, trust_remote_code: bool) -> int | None:
    """The longest prompt and answer by the model's own settings, in tokens; None without any.

    Raises:
        UserError: the config cannot be read.
    """
    try:
        config = read_config(pretrained, locate(pretrained, revision), trust_remote_code)
    except ValueError as error:
        raise UserError(str(error)) from error
    text = config.get_text_config(decoder=True)
    return getattr(text, "max_position_embeddings", None)


@cache
def key_length(pretrained: str, revision: str | None, trust_remote_code: bool) -> int | None:
    """Numbers in a key by the model's own settings; None where they tell of no single length."""
    try:
        config = read_config(pretrained, locate(pretrained, revision), trust_remote_code)
        text = config.get_text_config(decoder=True)
        several = ("qk_rope_head_dim", "global_head_dim", "swa_head_dim")
        if any(hasattr(text, name) for name in several):
            return None
        names = ("head_dim", "hidden_size", "num_attention_heads")
        own, width, heads = (getattr(text, name, None) for name in names)
    except (ValueError, RuntimeError):  # the latter where layers differ in one of them
        return None
    if own is None and isinstance(width, int) and isinstance(heads, int) and heads > 0:
        own = width // heads
    return own if isinstance(own, int) and own > 0 else None


@cache
def takes_images(pretrained: str, revision: str | None, trust_remote_code: bool) -> bool | None:
    """Whether the config is an image-text model's; None where it cannot be read, which loading it
    says.
    """
    try:
        config = read_config(pretrained, locate(pretrained, revision), trust_remote_code)
    except ValueError:
        return None
    return configs.takes_images(config)


@cache
def has_template(pretrained: str, revision: str | None, trust_remote_code: bool) -> bool | None:
    """Whether a chat template comes with the model; None where its tokenizer cannot be had."""
    try:
        return load(pretrained, revision, trust_remote_code)[0].chat_template is not None
    except UserError:
        return None


def too_long(model: ModelConfig) -> Callable[[str, int], str | None]:
    """A function that says why the model cannot take a text and an answer of so many tokens.

    It counts the text alone, so it may say nothing of a prompt that its template and images make
    too long. Only texts with more bytes than the model takes tokens are split into tokens.
    """
    given = (model.pretrained, model.revision, model.trust_remote_code)

    @cache
    def room() -> int | None:
        try:
            return model.max_length or context(*given)
        except Exception:  # whatever is wrong with the model is said when it is loaded
            return None

    def why(text: str, answer: int) -> str | None:
        most = room()
        if most is None or len(text.encode()) + answer <= most:
            return None
        try:
            length = len(load(*given)[0](text, add_special_tokens=False).input_ids)
        except UserError:
            return None
        if length + answer <= most:
            return None
        return (
            f"its prompt has {length:,} tokens and its answer may have {answer:,}, and "
            f"{model.name} takes {most:,} together; shorten it, or set model.max_length if that is "
            "too low"
        )

    return why


def fingerprint(tokenizer: Any) -> str:
    """16 hex digits over the rules of a fast tokenizer, or the words of a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(rules.encode()).hexdigest()[:16]
