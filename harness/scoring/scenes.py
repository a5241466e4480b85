"""A picture to be read out as a request: the picture, then the question.

Knows a document's `image` and `question`, and nothing of what the picture shows.
"""

from collections.abc import Mapping
from typing import Any


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """The picture, RGB."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """The question."""
    return str(doc["question"])
