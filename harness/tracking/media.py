"""Frames and images in wandb's own types.

Knows how values are stored, not what they mean.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import wandb
from PIL import Image

Seen = Callable[[int], Image.Image | None]
LARGEST = 768  # pixels of an image's longer side in a table


def table(frame: pd.DataFrame, column: str | None = None, seen: Seen | None = None) -> wandb.Table:
    """A frame as a table, its values unchanged: nan, infinities and NA as None.

    Args:
        frame: any columns.
        column: filled with the image of each line's `row`.
        seen: that image, None where there is none; asked once a row.
    """
    found = wandb.Table(columns=[str(name) for name in frame.columns], allow_mixed_types=True)
    rows = frame["row"].unique() if column is not None and seen is not None else ()
    images = {row: _image(seen(int(row))) for row in rows} if seen is not None else {}
    for line in frame.to_dict("records"):
        shown = {column: images[line["row"]]} if images else {}
        found.add_data(*(plain(value) for value in (line | shown).values()))
    return found


def picture(path: Path) -> wandb.Image:
    """An image file as it is."""
    return wandb.Image(str(path))


def _image(image: Image.Image | None) -> wandb.Image | None:
    """In colour, as PNG takes it, and no larger than a table can show."""
    if image is None:
        return None
    image = image.convert("RGB")
    image.thumbnail((LARGEST, LARGEST))
    return wandb.Image(image)


def plain(value: object) -> object:
    """Built-in types: mappings and lists inside too; nan, infinities and NA as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | bool | int | wandb.Image) else str(value)
