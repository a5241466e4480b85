"""A model's tokenizer without its weights, for data that is made to a length in tokens.

Knows model folders and the hub; must not know tasks.
"""

import hashlib
import json
from typing import Any

from transformers import AutoTokenizer

from harness.errors import UserError
from harness.hub import locate


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


def fingerprint(tokenizer: Any) -> str:
    """16 hex digits over the rules of a fast tokenizer, or the words of a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(rules.encode()).hexdigest()[:16]
