"""A model's tokenizer and context without its weights, for data made to a length in tokens.

Knows model folders and the hub; must not know tasks.
"""

import hashlib
import json
from functools import cache
from typing import Any

from transformers import AutoTokenizer

from harness.configs import from_here, read_config
from harness.errors import UserError
from harness.hub import locate
from harness.reading import quiet, reading


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


def fingerprint(tokenizer: Any) -> str:
    """16 hex digits over the rules of a fast tokenizer, or the words of a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(rules.encode()).hexdigest()[:16]
