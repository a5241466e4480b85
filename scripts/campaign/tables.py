"""Tables in MMBench's schema, right ones and such as people make by mistake.

Knows the schema and parquet; must not know the harness.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, Any]
WORDS = ("amber", "birch", "coral", "delta")
ROTATION = 1_000_000
FRONT = """---
configs:
- config_name: {config}
  data_files:
  - split: {split}
    path: {config}/{split}-*
---
"""
IMAGE = {"image": {"_type": "Image"}}


def picture(number: int = 0) -> bytes:
    """A small PNG of its own colour."""
    file = io.BytesIO()
    Image.new("RGB", (12 + number, 10), (40 * number % 256, 90, 10)).save(file, "PNG")
    return file.getvalue()


def rows(questions: int = 4) -> list[Row]:
    """Questions of 2, 3 or 4 options in all their rotations, main rows first."""
    found = [row for number in range(questions) for row in _rotations(number)]
    return sorted(found, key=lambda row: row["index"])


def _rotations(number: int) -> list[Row]:
    count = (4, 3, 2, 4)[number % 4]
    words = [f"{word}{number}" for word in WORDS[:count]]
    found = []
    for turn in range(count):
        shown = [words[(place - turn) % count] for place in range(count)]
        letters = dict(zip("ABCD", [*shown, *[None] * (4 - count)], strict=True))
        found.append(
            {
                "index": number + turn * ROTATION,
                "question": f"Which one is number {number}?",
                "hint": "Look." if number == 1 else None,
                "answer": "ABCD"[shown.index(words[number % count])],
                **letters,
                "category": f"kind_{number % 2}",
                "image": {"bytes": picture(number), "path": None},
                "source": "made",
                "L2-category": "perception",
                "comment": "",
                "split": "dev",
            }
        )
    return found


def key(table: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The right letter of every index."""
    return {int(row["index"]): str(row["answer"]).strip() for row in table}


def schema(table: Sequence[Row], types: Mapping[str, pa.DataType]) -> pa.Schema:
    """Text columns, a whole number and an image, but for the types that are given."""
    usual = {"index": pa.int64(), "image": pa.struct({"bytes": pa.binary(), "path": pa.string()})}
    names = list(table[0]) if table else list(rows()[0])
    fields = [pa.field(n, types.get(n, usual.get(n, pa.string()))) for n in names]
    hugging = {"info": {"features": {f.name: _feature(f) for f in fields}}}
    return pa.schema(fields, metadata={"huggingface": json.dumps(hugging)})


def _feature(field: pa.Field) -> dict[str, Any]:
    if field.name == "image" and pa.types.is_struct(field.type):
        return {"_type": "Image"}
    if pa.types.is_list(field.type):
        return {"_type": "List", "feature": {"dtype": str(field.type.value_type), "_type": "Value"}}
    return {"dtype": {"double": "float64"}.get(str(field.type), str(field.type)), "_type": "Value"}


def parquet(
    path: Path, table: Sequence[Row], types: Mapping[str, pa.DataType] | None = None
) -> None:
    """Write rows as one parquet file that says which column is an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = schema(table, types or {})
    if types and any(pa.types.is_dictionary(kind) for kind in types.values()):
        shape = shape.with_metadata(None)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in table], schema=shape), path)


def write(
    folder: Path,
    table: Sequence[Row],
    types: Mapping[str, pa.DataType] | None = None,
    config: str = "en",
    split: str = "dev",
) -> Path:
    """A folder in the layout of MMBench's repository."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(FRONT.format(config=config, split=split))
    parquet(folder / config / f"{split}-00000-of-00001.parquet", table, types)
    return folder
