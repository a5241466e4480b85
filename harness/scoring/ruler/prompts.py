"""A generated long-context document as chat messages.

Knows the columns of the generated data and nothing of the task that they are about.
"""

from collections.abc import Mapping
from typing import Any

from datasets import Features, List, Value

COLUMNS = Features(
    {
        "index": Value("int64"),
        "input": Value("string"),  # the user's text
        "context_end": Value("int64"),  # characters of `input` up to the end of the long context
        "outputs": List(Value("string")),  # references
        "answer_prefix": Value("string"),  # begins the assistant's turn; "" where there is none
        "length": Value("int64"),  # tokens of the prompt and the answer to come
        "max_length": Value("int64"),
    }
)


def doc_to_messages(doc: Mapping[str, Any], *_: Any) -> list[dict[str, Any]]:
    """One user message in two parts, cut where the context ends, and the answer's beginning."""
    end = doc["context_end"]
    parts = [
        {"type": "text", "text": doc["input"][:end], "context": True},
        {"type": "text", "text": doc["input"][end:]},
    ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    if doc["answer_prefix"]:
        messages.append({"role": "assistant", "content": doc["answer_prefix"]})
    return messages


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """The same prompt as one text, for models that take no messages."""
    return str(doc["input"]) + str(doc["answer_prefix"])
