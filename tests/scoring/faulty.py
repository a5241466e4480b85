"""Question sets in MMBench's schema with something wrong, made in a moment."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets import Image as Picture
from PIL import Image

from harness.settings.config import TaskConfig
from tests.run.fakes import FRONT

Row = dict[str, Any]
FRUIT = ("banana", "apple", "pear", "plum")
FILE = Path("en") / "dev-00000-of-00001.parquet"


def rows(questions: int = 3, options: int = 4) -> list[Row]:
    """`questions` questions in all rotations, first rotations first; index 7 is row 0."""
    made = [_turn(n, turn, options) for turn in range(options) for n in range(questions)]
    return made


def grouped(questions: int) -> list[list[Row]]:
    """The rotations of each question."""
    table = rows(questions)
    return [table[number::questions] for number in range(questions)]


def _turn(number: int, turn: int, count: int) -> Row:
    texts = [FRUIT[(place - turn) % count] for place in range(count)]
    right = FRUIT[number % count]
    return {
        "index": 7 + number + turn * 1_000_000,
        "question": f"What fruit is on plate {number}?",
        "hint": None,
        "answer": "ABCD"[texts.index(right)],
        **dict(zip("ABCD", [*texts, None, None, None][:4], strict=True)),
        "category": "fruit",
        "image": {"bytes": picture(), "path": None},
        "source": "test",
        "L2-category": "food",
        "split": "dev",
    }


def features(table: list[Row], other: Mapping[str, Any] | None = None) -> Features:
    """The schema of the hub's MMBench for the columns that a table has."""
    names = dict.fromkeys(name for row in table for name in row)
    kinds = {name: Value("string") for name in names}
    kinds |= {"index": Value("int64"), "image": Picture()} | dict(other or {})
    return Features({name: kinds[name] for name in names})


def write(folder: Path, table: list[Row], other: Mapping[str, Any] | None = None) -> Path:
    """A folder in the layout of the hub's repository."""
    (folder / FILE).parent.mkdir(parents=True)
    (folder / "README.md").write_text(FRONT)
    kinds = features(table, other)
    columns = {name: [row.get(name) for row in table] for name in kinds}
    made = Dataset.from_dict(columns, features=kinds).data.table
    pq.write_table(made.replace_schema_metadata(kinds.arrow_schema.metadata), folder / FILE)
    return folder


def task(folder: Path, **changes: Any) -> TaskConfig:
    """The settings that ask the folder's questions."""
    overrides = {"dataset_path": str(folder), "dataset_kwargs": {}, **changes.pop("overrides", {})}
    return TaskConfig("mmbench_en_dev_static", scorer="mmbench", overrides=overrides, **changes)


def changed(place: int | slice = 0, **values: Any) -> Callable[[], list[Row]]:
    """A table with other values in one row, or in several."""

    def make() -> list[Row]:
        table = rows()
        for row in table[place] if isinstance(place, slice) else [table[place]]:
            row.update(values)
        return table

    return make


def shows(content: bytes | None, path: str | None = None) -> Callable[[], list[Row]]:
    """A table whose first image is these bytes."""
    return changed(0, image={"bytes": content, "path": path})


def picture(
    kind: str = "RGB", form: str = "PNG", size: tuple[int, int] = (8, 8), **more: Any
) -> bytes:
    """An image as bytes."""
    file = io.BytesIO()
    Image.new(kind, size).save(file, form, **more)
    return file.getvalue()


def moving(form: str) -> bytes:
    """An image of two frames."""
    return picture("RGB", form, save_all=True, append_images=[Image.new("RGB", (8, 8), (9, 9, 9))])


def head_of(width: int, height: int) -> bytes:
    """A PNG that claims a size."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(b""),
        b"IEND": b"",
    }
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def half(content: bytes) -> bytes:
    """The first half of a file."""
    return content[: len(content) // 2]


def noisy(form: str = "JPEG", **more: Any) -> bytes:
    """An image that takes some bytes."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(file, form, **more)
    return file.getvalue()


def damaged_tiff() -> bytes:
    """A TIFF whose pixels were overwritten, of which libtiff complains on standard error."""
    content = bytearray(noisy("TIFF", compression="tiff_deflate"))
    for place in range(len(content) // 3, 2 * len(content) // 3):
        content[place] = (7 * content[place] + 13) % 256
    return bytes(content)
