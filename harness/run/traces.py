"""What the prompts of a run looked like and what each cell kept of the shown ones, as files.

Reads the store and the benchmarks' images; must not know models, methods or how files are shown.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from PIL import Image

from harness.records.atomic import replacing
from harness.records.store import Store
from harness.run.asked import Asked
from harness.settings.grid import Cell

FOLDER = "images"
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")  # of images that PNG holds as they are

PROMPTS = pa.schema(
    {
        "model": pa.string(),
        "task": pa.string(),
        "protocol": pa.string(),
        "row": pa.int64(),
        "segments": pa.string(),
        "tokens": pa.string(),
        "images": pa.string(),
        "image": pa.string(),
    }
)
KEPT = pa.schema(
    {
        "model": pa.string(),
        "task": pa.string(),
        "protocol": pa.string(),
        "method": pa.string(),
        "ratio": pa.float64(),
        "budget": pa.int64(),
        "control": pa.string(),
        "cell_key": pa.string(),
        "row": pa.int64(),
        "shares": pa.list_(pa.float32()),
    }
)


def write(
    store: Store,
    asked: Sequence[Asked],
    model: str,
    folder: Path,
    more: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write prompts.parquet, kept.parquet and images/ into the run folder, the same at every call.

    prompts.parquet has a row for each question row whose prompt the store recorded, or that has an
    image here: then without segments ("[]") and tokens. kept.parquet has a row for each cell and
    shown row that was traced.

    Args:
        store: holds the answers, and the traces of those that were recorded.
        asked: the tasks of the run.
        model: its name.
        folder: the run folder.
        more: by task, rows whose images are wanted beside those of the shown rows.

    Raises:
        OSError: the folder cannot be written.
    """
    wanted = more or {}
    images = {one.task.name: _images(one, folder, wanted.get(one.task.name, ())) for one in asked}
    prompts = [row for one in asked for row in _prompts(store, one, model, images[one.task.name])]
    kept = [row for one in asked for row in _kept(store, one, model)]
    for name, rows, schema in (("prompts", prompts, PROMPTS), ("kept", kept, KEPT)):
        frame = pd.DataFrame(rows, columns=schema.names)
        if "budget" in frame:
            frame = frame.astype({"budget": "Int64", "ratio": "float64"})
        with replacing(folder / f"{name}.parquet") as part:
            frame.to_parquet(part, index=False, schema=schema)
    _remove_stale(folder / FOLDER, {name for each in images.values() for name in each.values()})


def _prompts(
    store: Store, one: Asked, model: str, images: Mapping[int, str]
) -> list[dict[str, object]]:
    """The prompts of one task in the order of its rows, for each protocol and prefill."""
    nothing = {"segments": "[]", "tokens": None, "images": "[]"}
    rows: list[dict[str, object]] = []
    for key, cell in one.full.items():
        found = store.prompts(key)
        rows += [
            {
                **_named(one, model, cell),
                "row": row,
                **found.get(row, nothing),
                "image": images.get(row),
            }
            for row in one.benchmark.rows
            if row in found or row in images
        ]
    return rows


def _kept(store: Store, one: Asked, model: str) -> list[dict[str, object]]:
    """What each cell of one task kept of each shown row."""
    rows: list[dict[str, object]] = []
    for key, cell in one.cells.items():
        about = {
            "method": cell.label,
            "ratio": cell.ratio if cell.evicts else 0.0,
            "budget": cell.budget,
            "control": cell.control,
            "cell_key": key,
        }
        found = store.kept(key)
        rows += [
            {**_named(one, model, cell), **about, "row": row, "shares": found[row]}
            for row in one.benchmark.shown
            if row in found
        ]
    return rows


def _named(one: Asked, model: str, cell: Cell) -> dict[str, str]:
    return {"model": model, "task": one.task.name, "protocol": cell.under}


def _images(one: Asked, folder: Path, more: Sequence[int]) -> dict[int, str]:
    """Write the first image of the shown rows and of some more; the names of their files."""
    found: dict[int, str] = {}
    for row in sorted({*one.benchmark.shown, *more} & {*one.benchmark.rows}):
        image = one.benchmark.image(row)
        if image is None:
            continue
        found[row] = re.sub(r"[^\w.]+", "_", one.task.name) + f"-{row}.png"
        (folder / FOLDER).mkdir(exist_ok=True)
        with replacing(folder / FOLDER / found[row]) as part:
            _as_png(image).save(part, format="PNG")
    return found


def _as_png(image: Any) -> Image.Image:
    """A picture, or the file of one, in a mode that PNG has."""
    opened: Image.Image = Image.open(image) if isinstance(image, str | Path) else image
    return opened if opened.mode in MODES else opened.convert("RGB")


def _remove_stale(folder: Path, written: set[str]) -> None:
    """Pictures of an earlier report of this folder that this one does not show."""
    for path in folder.glob("*.png"):
        if path.name not in written:
            path.unlink(missing_ok=True)
    if not written and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
