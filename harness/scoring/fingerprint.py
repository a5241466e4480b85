"""What tells one data set and its prompts from another: a digest of everything that is asked.

Knows lmms-eval's task objects; must not know what the questions mean.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def fingerprint(task: Any, split: str, documents: Iterable[Mapping[str, Any]]) -> str:
    """sha256 over every field and image of the whole split and the prompt made from each row."""
    digest = hashlib.sha256()
    own = callable(task.config.doc_to_messages)
    for batch in task.dataset[split].with_format("arrow").iter(batch_size=256):
        for row in batch.to_pylist():
            _feed(digest, row)
    for document in documents:
        digest.update(str(task.doc_to_text(document)).encode())
    if own:
        for document in task.eval_docs:
            _feed(digest, _said(task.doc_to_messages(document)))
    return digest.hexdigest()


def _said(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Messages without their images, which the data set's own bytes stand for."""
    kept = []
    for message in messages:
        parts = message["content"]
        if not isinstance(parts, str):
            parts = [{k: v for k, v in part.items() if k != "url"} for part in parts]
        kept.append({**message, "content": parts})
    return kept


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):  # stored media: the path beside it says nothing
            digest.update(b"b%d:" % len(value["bytes"]) + value["bytes"])
            return
        for name in sorted(value):
            _feed(digest, name)
            _feed(digest, value[name])
    elif isinstance(value, (list, tuple)):
        digest.update(b"l%d:" % len(value))
        for item in value:
            _feed(digest, item)
    elif isinstance(value, bytes):
        digest.update(b"b%d:" % len(value) + value)
    else:
        text = json.dumps(value, ensure_ascii=False, default=str).encode()
        digest.update(b"s%d:" % len(text) + text)
