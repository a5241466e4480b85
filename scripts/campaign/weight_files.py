"""What can be wrong with the files that hold a model's tensors, alone or in shards."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.campaign.tensors import EMBEDDED, INDEX, NAME, shard

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3373192\n"
Edit = Callable[[Path, random.Random], Any]
Index = dict[str, Any]


def _bytes(change: Callable[[bytes], bytes]) -> Edit:
    def edit(folder: Path, rng: random.Random) -> None:
        path = folder / NAME
        path.write_bytes(change(path.read_bytes()))

    return edit


def _header(change: Callable[[dict[str, Any]], object]) -> Edit:
    """Change the JSON before the numbers, with its length made to fit."""

    def edit(content: bytes) -> bytes:
        end = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:end])
        change(header)
        made = json.dumps(header).encode()
        return struct.pack("<Q", len(made)) + made + content[end:]

    return _bytes(edit)


def _first(**values: Any) -> Edit:
    """Change what the header says of the first tensor."""

    def change(header: dict[str, Any]) -> None:
        header[sorted(key for key in header if key != "__metadata__")[0]] |= values

    return _header(change)


def _folder_there(folder: Path, rng: random.Random) -> None:
    (folder / NAME).unlink()
    (folder / NAME).mkdir()


def _shards(change: Callable[[Path, Index], object] = lambda folder, index: None) -> Edit:
    """Three shards, then a change of the files or of the index."""

    def edit(folder: Path, rng: random.Random) -> None:
        index = shard(folder, 3)
        change(folder, index)
        if (folder / INDEX).exists():
            (folder / INDEX).write_text(json.dumps(index))

    return edit


def _part(number: int) -> str:
    return f"model-{number:05d}-of-00003.safetensors"


def _spoilt(number: int, content: Callable[[bytes], bytes]) -> Edit:
    def change(folder: Path, index: Index) -> None:
        path = folder / _part(number)
        path.write_bytes(content(path.read_bytes()))

    return _shards(change)


def _mapped(**more: str) -> Edit:
    return _shards(lambda folder, index: index["weight_map"].update(more))


def _unlisted(folder: Path, index: Index) -> None:
    kept = {k: v for k, v in index["weight_map"].items() if v != _part(2)}
    index["weight_map"] = kept


def _moved(folder: Path, index: Index) -> None:
    index["weight_map"] = dict.fromkeys(index["weight_map"], _part(1))


def _whole_beside(folder: Path, index: Index) -> None:
    shutil.copy(EMBEDDED / NAME, folder / NAME)


def _end_of_header(content: bytes) -> int:
    return 8 + int(struct.unpack("<Q", content[:8])[0])


# What is said, the change of the folder, what must come of it, the words of a refusal.
FILES: tuple[tuple[str, Edit, str, tuple[str, ...]], ...] = (
    ("weights: empty", _bytes(lambda c: b""), "refuse", (NAME,)),
    ("weights: half", _bytes(lambda c: c[: len(c) // 2]), "refuse", (NAME,)),
    ("weights: without the last byte", _bytes(lambda c: c[:-1]), "refuse", (NAME,)),
    ("weights: a byte more", _bytes(lambda c: c + b"x"), "refuse", (NAME,)),
    ("weights: without the first byte", _bytes(lambda c: c[1:]), "refuse", (NAME,)),
    ("weights: header only", _bytes(lambda c: c[: _end_of_header(c)]), "refuse", (NAME,)),
    ("weights: 8 bytes", _bytes(lambda c: c[:8]), "refuse", (NAME,)),
    ("weights: LFS pointer", _bytes(lambda c: POINTER), "refuse", (NAME,)),
    ("weights: HTML", _bytes(lambda c: b"<html>404</html>"), "refuse", (NAME,)),
    ("weights: zeros", _bytes(lambda c: bytes(len(c))), "refuse", (NAME,)),
    ("weights: a pickle", _bytes(lambda c: b"\x80\x02}q\x00."), "refuse", (NAME,)),
    ("weights: a huge header", _bytes(lambda c: b"\xff" * 7 + c[7:]), "refuse", (NAME,)),
    ("weights: no JSON", _bytes(lambda c: c[:8] + b"x" + c[9:]), "refuse", (NAME,)),
    ("weights: another shape in the header", _first(shape=[3, 5]), "refuse", (NAME,)),
    ("weights: unknown type", _first(dtype="F99"), "refuse", (NAME,)),
    ("weights: offsets beyond", _first(data_offsets=[0, 2**40]), "refuse", (NAME,)),
    ("weights: no metadata", _header(lambda h: h.pop("__metadata__", None)), "either", ()),
    ("weights: odd metadata", _header(lambda h: h.update(__metadata__={"format": "tf"})),
     "either", ()),
    ("weights: missing", lambda folder, rng: (folder / NAME).unlink(), "refuse", ("safetensors",)),
    ("weights: a folder", _folder_there, "refuse", (NAME,)),
    ("shards: three", _shards(), "right", ()),
    ("shards: one missing", _shards(lambda f, i: (f / _part(2)).unlink()), "refuse", (_part(2),)),
    ("shards: one empty", _spoilt(2, lambda c: b""), "refuse", (_part(2),)),
    ("shards: one an LFS pointer", _spoilt(3, lambda c: POINTER), "refuse", (_part(3),)),
    ("shards: one cut", _spoilt(1, lambda c: c[:-9]), "refuse", (_part(1),)),
    ("shards: no index", _shards(lambda f, i: (f / INDEX).unlink()), "refuse", ("safetensors",)),
    ("shards: index without a tensor", _shards(lambda f, i: i["weight_map"].pop("lm_head.weight")),
     "either", ()),
    ("shards: index without a file", _shards(_unlisted), "refuse", ()),
    ("shards: index that names too much", _mapped(mine=_part(1)), "refuse", ()),
    ("shards: index that names one file", _shards(_moved), "either", ()),
    ("shards: index that names a lost file", _mapped(**{"lm_head.weight": "gone.safetensors"}),
     "refuse", ("gone.safetensors",)),
    ("shards: index without a map", _shards(lambda f, i: i.pop("weight_map")), "refuse", (INDEX,)),
    ("shards: index of another kind", _shards(lambda f, i: i.update(weight_map=[1])),
     "refuse", (INDEX,)),
    ("shards: beside the whole", _shards(_whole_beside), "either", ()),
)  # fmt: skip
