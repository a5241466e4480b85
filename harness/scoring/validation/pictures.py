"""Whether images can be shown: read from their stored bytes, first their heads, then whole.

A head takes a twentieth of a millisecond, so all are read; decoding takes milliseconds, so only
images that are asked about are decoded, each once. Knows PIL; must not know tasks.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from datasets import Dataset, List
from datasets import Image as Picture
from PIL import Image, ImageFile

from harness.scoring import quiet
from harness.scoring.validation import tables
from harness.scoring.validation.faults import Fault

PIXELS = 89_478_485  # PIL's own limit, which the tasks of lmms-eval may have switched off
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PATIENCE = 2.0  # seconds before a progress bar shows
BATCH = 64
BEGINNING = 12  # bytes that a sentence shows


def columns(dataset: Dataset) -> list[str]:
    """The columns that hold an image or a list of images."""
    return [name for name, feature in dataset.features.items() if _holds(feature)]


def _holds(feature: Any) -> bool:
    inner = feature[0] if isinstance(feature, list) and feature else feature
    inner = getattr(inner, "feature", inner) if isinstance(feature, List) else inner
    return isinstance(inner, Picture)


def heads(dataset: Dataset, required: bool) -> list[Fault]:
    """The images that are not there, are of no known kind or are too large, one fault a row.

    Args:
        dataset: all rows.
        required: whether every row must have an image.
    """
    return _first_of_each_row(
        Fault(row, column, why)
        for row, column, stored in _stored(dataset, range(len(dataset)))
        if (why := _head(stored, required))
    )


def damaged(dataset: Dataset, rows: Sequence[int]) -> list[Fault]:
    """The images of some rows that cannot be decoded to their end, one fault a row."""
    from tqdm import tqdm

    known: dict[bytes, str | None] = {}
    bar = tqdm(
        _stored(dataset, rows),
        total=len(rows) * len(columns(dataset)),
        desc="checking images",
        unit="image",
        ncols=99,
        delay=PATIENCE,
        file=quiet.terminal(),
        leave=False,
    )
    found = []
    with bar:
        for row, column, stored in bar:
            content = _bytes(stored)
            if content is None:
                continue
            name = hashlib.blake2b(content, digest_size=16).digest()
            if name not in known:  # the rotations of a question share their image
                known[name] = _decoded(content)
            if why := known[name]:
                found.append(Fault(row, column, why))
    return _first_of_each_row(found)


def _first_of_each_row(faults: Iterable[Fault]) -> list[Fault]:
    first: dict[int, Fault] = {}
    for fault in faults:
        first.setdefault(fault.row, fault)
    return [first[row] for row in sorted(first)]


def _stored(dataset: Dataset, rows: Sequence[int]) -> Iterator[tuple[int, str, Any]]:
    """Row, column and stored form of every image; a list of images gives several."""
    names = columns(dataset)
    if not names or not len(rows):
        return
    chosen = dataset.select_columns(names)
    if len(rows) < len(dataset):
        chosen = chosen.select(rows)
    numbers = iter(rows)
    for table in chosen.with_format("arrow").iter(batch_size=BATCH):
        held = [tables.values(table.column(name)) for name in names]
        for cells in zip(*held, strict=True):
            row = next(numbers)
            for name, cell in zip(names, cells, strict=True):
                for one in cell if isinstance(cell, list) else [cell]:
                    yield row, name, one


def _bytes(stored: Any) -> bytes | None:
    """The content of a stored image; None where there is none."""
    if not isinstance(stored, Mapping):
        return None
    if stored.get("bytes") is not None:
        return bytes(stored["bytes"])
    path = stored.get("path")
    try:
        return Path(path).read_bytes() if path else None
    except (OSError, ValueError):
        return None


def _head(stored: Any, required: bool) -> str | None:
    """Why an image cannot be opened; None where it can, or is not there and need not be."""
    content = _bytes(stored)
    if content is None:
        path = stored.get("path") if isinstance(stored, Mapping) else None
        if path:
            return f"there are no bytes of an image and no file {path}; store the image's bytes"
        return "there is no image" if required else None
    if not content:
        return "the image is empty"
    try:
        with _strictly(content), Image.open(io.BytesIO(content)) as image:
            return _unfit(image)
    except Exception:  # every reader of PIL has its own
        return f"these are the bytes of no image that PIL reads (they begin with {_begin(content)})"


def _unfit(image: Image.Image) -> str | None:
    width, height = image.size
    if not width or not height:
        return f"the image is {width} x {height} pixels"
    if width * height > PIXELS:
        return f"the image is {width:,} x {height:,} pixels, and at most {PIXELS:,} are decoded"
    if image.mode == "F":
        return "the image holds floating-point pixels; store 8 or 16 bits a channel"
    return None


def _decoded(content: bytes) -> str | None:
    """Why an image cannot be decoded to its end."""
    try:
        with _strictly(content), Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))  # JPEG only
            image.load()
    except Exception as error:  # every reader of PIL has its own
        said = " ".join(str(error).split()) or type(error).__name__
        return f"the image is cut off or damaged ({said})"
    return None


def _begin(content: bytes) -> str:
    return repr(content[:BEGINNING])[1:]


@contextmanager
def _strictly(content: bytes) -> Iterator[None]:
    """Let PIL read the head of an image of any size, which is judged here, and no half of one,
    which libraries that share the process allow.
    """
    usual = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
    try:
        with _silent() if content.startswith(TIFF) else nullcontext():
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = usual


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on the process's standard error: libtiff writes there by itself."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def eight_bit(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row whose images of 16 bits a pixel have 8: PIL's own conversion would clip them white."""
    deep = {name: _shallow(value) for name, value in document.items() if _is_deep(value)}
    return {**document, **deep} if deep else document


def _is_deep(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_deep, value))
    return isinstance(value, Image.Image) and value.mode in DEEP


def _shallow(value: Any) -> Any:
    if isinstance(value, list):
        return [_shallow(one) for one in value]
    if not _is_deep(value):
        return value
    import numpy as np

    return Image.fromarray((np.asarray(value).clip(0, 65535) // 256).astype(np.uint8))
