"""Large images cut into tiles, each an image of the prompt, as models with anyres crops do.

For a model whose processor scales every image to one size. Knows the shape of messages and Pillow;
must not know models or tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from transformers.image_utils import load_image

Messages = Sequence[Mapping[str, Any]]
MOST = 36  # tiles of an image; a larger one is scaled down to so many


def grid(width: int, height: int, side: int, most: int = MOST) -> tuple[int, int]:
    """Tiles across and down for an image of some pixels: at least one, at most `most` in all."""
    scale = min(1.0, math.sqrt(most * side * side / (width * height)))
    across, down = (max(1, round(pixels * scale / side)) for pixels in (width, height))
    while across * down > most:
        across, down = (across - 1, down) if across >= down else (across, down - 1)
    return across, down


def _grid_of(image: Image.Image, side: int) -> tuple[int, int]:
    width, height = image.size
    return grid(width, height, side)


def tiles(image: Image.Image, side: int) -> list[Image.Image]:
    """An image as tiles of `side` pixels, row by row; scaled to whole tiles first."""
    across, down = _grid_of(image, side)
    size = (across * side, down * side)
    whole = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    corners = [(col * side, row * side) for row in range(down) for col in range(across)]
    return [whole.crop((x, y, x + side, y + side)) for x, y in corners]


def cut(messages: Messages, side: int | None) -> Messages:
    """Messages of lmms-eval with every image as its tiles; as they are where `side` is None."""
    if side is None:
        return messages
    return [{**message, "content": _content(message["content"], side)} for message in messages]


def _content(content: Any, side: int) -> Any:
    if isinstance(content, str):
        return content
    return [new for part in content for new in _part(part, side)]


def _part(part: Mapping[str, Any], side: int) -> list[Mapping[str, Any]]:
    if part["type"] != "image":
        return [part]
    image = load_image(part.get("url", part.get("image")))
    if _grid_of(image, side) == (1, 1):
        return [part]
    return [{"type": "image", "url": tile} for tile in tiles(image, side)]
