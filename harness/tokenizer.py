"""A model's tokenizer and context without its weights, for data made to a length in tokens.

Knows model folders and the hub; must not know tasks.
"""

import hashlib
import json
from functools import cache
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from harness.errors import UserError
from harness.hub import locate


@cache
def load(pretrained: str, revision: str | None, trust_remote_code: bool) -> tuple[Any, str]:
    """The tokenizer and 16 hex digits of how it splits text.

    Raises:
        UserError: it cannot be had.
    """
    try:
        source = locate(pretrained, revision)
        tokenizer = AutoTokenizer.from_pretrained(
            source.name,
            trust_remote_code=trust_remote_code,
            local_files_only=source.local,
            **({"revision": source.commit} if source.commit else {}),
        )
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"The tokenizer of model {pretrained} cannot be loaded ({reason}): give a complete "
            "model folder or hub id, for the task's prompts are made to a length in its tokens."
        ) from error
    return tokenizer, fingerprint(tokenizer)


@cache
def context(pretrained: str, revision: str | None, trust_remote_code: bool) -> int | None:
    """The longest prompt and answer by the model's own settings, in tokens; None without any."""
    source = locate(pretrained, revision)
    config = AutoConfig.from_pretrained(
        source.name,
        trust_remote_code=trust_remote_code,
        local_files_only=source.local,
        **({"revision": source.commit} if source.commit else {}),
    )
    text = config.get_text_config(decoder=True)
    return getattr(text, "max_position_embeddings", None)


def fingerprint(tokenizer: Any) -> str:
    """16 hex digits over the rules of a fast tokenizer, or the words of a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(rules.encode()).hexdigest()[:16]
