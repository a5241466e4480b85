"""Chats as a task gives them, and the segments of a prompt after what must hold of all of them."""

from __future__ import annotations

from itertools import chain

from PIL import Image


def ask(*parts: str | None, context: int | None = None) -> list[dict]:
    """A user's message; None is an image."""
    content: list[dict] = [
        {"type": "image", "url": Image.new("RGB", (4, 4))}
        if part is None
        else {"type": "text", "text": part}
        for part in parts
    ]
    if context is not None:
        content[context]["context"] = True
    return [{"role": "user", "content": content}]


def told(prompt) -> list[tuple[str, int]]:
    """The segments, after checking what holds of all of them."""
    parts = list(chain.from_iterable([name] * count for name, count in prompt.segments))
    assert len(parts) == prompt.inputs["input_ids"].shape[1]
    assert [name == "image" for name in parts] == prompt.modality.bool().tolist()
    assert all(a[0] != b[0] for a, b in zip(prompt.segments, prompt.segments[1:], strict=False))
    return prompt.segments
