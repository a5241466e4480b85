"""What tells one data set and its prompts from another: a digest of everything that is asked.

Knows lmms-eval's task objects; must not know what the questions mean.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from harness.scoring.validation import tables


def fingerprint(task: Any, whole: Dataset, documents: Iterable[Mapping[str, Any]]) -> str:
    """sha256 over every field and image of the whole split and the prompt of each row.

    Args:
        task: lmms-eval's task object.
        whole: the split, rows that cannot be asked included.
        documents: the rows that can, without images.
    """
    digest = hashlib.sha256()
    own = callable(task.config.doc_to_messages)
    for row in tables.documents(whole):
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


def _media(value: Mapping[str, Any]) -> bytes | None:
    """The bytes of stored media, those of the file that stands in their place among them."""
    if isinstance(value.get("bytes"), bytes):
        return bytes(value["bytes"])
    if {*value} != {"bytes", "path"} or not value["path"]:
        return None
    path = Path(str(value["path"]))
    return path.read_bytes() if path.is_file() else None


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        content = _media(value)
        if content is not None:  # the path beside it says nothing
            digest.update(b"b%d:" % len(content) + content)
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
