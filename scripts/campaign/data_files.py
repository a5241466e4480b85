"""What can be wrong with the files of a data set: parquet, folders and the README in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from scripts.campaign import tables

NAME = "dev-00000-of-00001.parquet"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
KEY = tables.key(tables.rows())


@dataclass(frozen=True)
class Files:
    """A data set on disk: `make` writes it and returns what dataset_path names."""

    said: str
    make: Callable[[Path], Path]
    want: str = "refuse"
    words: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    key: Mapping[int, str] = field(default_factory=lambda: KEY)


def _parquet(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tables.write(folder, tables.rows())
        path = folder / "en" / NAME
        path.write_bytes(change(path.read_bytes()))
        return folder

    return make


def _readme(text: str | None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tables.write(folder, tables.rows())
        readme = folder / "README.md"
        readme.unlink()
        if text is not None:
            readme.write_text(text)
        return folder

    return make


def _placed(name: str) -> Callable[[Path], Path]:
    return lambda folder: tables.write(folder / name, tables.rows())


def _linked(folder: Path) -> Path:
    tables.write(folder / "real", tables.rows())
    (folder / "link").symlink_to(folder / "real")
    return folder / "link"


def _shards(second: dict[str, pa.DataType] | None, spoil: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        rows = tables.rows()
        tables.write(folder, rows[:6])
        path = folder / "en" / "dev-00001-of-00002.parquet"
        later = [{**row, "index": str(row["index"])} for row in rows[6:]] if second else rows[6:]
        tables.parquet(path, later, second)
        if spoil:
            path.write_bytes(path.read_bytes()[:200])
        return folder

    return make


def _mixed(folder: Path) -> Path:
    tables.write(folder, tables.rows())
    other = [{"a": "1", "b": "2"}]
    tables.parquet(folder / "en" / "dev-00001-of-00002.parquet", other)
    return folder


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _lone(folder: Path) -> Path:
    return tables.write(folder, tables.rows()) / "en" / NAME


def _split(folder: Path) -> Path:
    return tables.write(folder, tables.rows(), split="test")


def _script(folder: Path) -> Path:
    tables.write(folder, tables.rows())
    (folder / "data.py").write_text("raise SystemExit('ran')\n")
    return folder


def _directory(folder: Path) -> Path:
    tables.write(folder, tables.rows())
    (folder / "en" / NAME).unlink()
    (folder / "en" / NAME).mkdir()
    return folder


def _text(folder: Path) -> Path:
    tables.write(folder, tables.rows())
    (folder / "en" / NAME).write_text("index,question\n1,what\n")
    return folder


def _flip(content: bytes) -> bytes:
    place = len(content) // 3
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def _garbled(content: bytes) -> bytes:
    return content[:8] + bytes(len(content) // 2) + content[8 + len(content) // 2 :]


CASES: tuple[Files, ...] = (
    Files("sound table", _parquet(lambda c: c), "right"),
    Files("empty parquet", _parquet(lambda c: b""), words=("parquet|data",)),
    Files("half a parquet", _parquet(lambda c: c[: len(c) // 2]), words=("parquet|data",)),
    Files("parquet without its last byte", _parquet(lambda c: c[:-1]), words=("parquet|data",)),
    Files("parquet without its first bytes", _parquet(lambda c: c[4:]), words=("parquet|data",)),
    Files("parquet with bytes behind it", _parquet(lambda c: c + b"x" * 9), "either"),
    Files("garbled parquet", _parquet(_garbled), words=("parquet|data",)),
    Files("a flipped byte in the parquet", _parquet(_flip), "either"),
    Files("LFS pointer for a parquet", _parquet(lambda c: POINTER), words=("parquet|data",)),
    Files("text for a parquet", _text, words=("parquet|data",)),
    Files("HTML for a parquet", _parquet(lambda c: b"<html>404</html>"), words=("parquet|data",)),
    Files("a folder for a parquet", _directory),
    Files("no README", _readme(None), "either"),
    Files("an empty README", _readme(""), "either"),
    Files("a README of another configuration",
          _readme(tables.FRONT.format(config="de", split="dev"))),
    Files("a README that lists nothing", _readme("---\nconfigs: []\n---\n"), "either"),
    Files("a README that is no YAML", _readme("---\nconfigs: [\n---\n"), "either"),
    Files("a README of odd types", _readme("---\nconfigs: 3\n---\n"), "either"),
    Files("a README that lists a missing file",
          _readme(tables.FRONT.format(config="en", split="dev").replace("en/dev", "en/no"))),
    Files("two shards", _shards(None), "right"),
    Files("shards of other types", _shards({"index": pa.string()}), "either"),
    Files("a truncated second shard", _shards(None, spoil=True)),
    Files("a shard with other columns", _mixed),
    Files("an empty folder", _empty),
    Files("a path to the parquet itself", _lone, "either"),
    Files("another split", _split, words=("dev|split",)),
    Files("a loading script beside it", _script, "either"),
    Files("a path with blanks and accents", _placed("my däta 中"), "right"),
    Files("a path with an equals sign", _placed("a=b"), "either"),
    Files("a path with a comma", _placed("a,b"), "either"),
    Files("a path with brackets", _placed("a[1]"), "either"),
    Files("a link to the folder", _linked, "right"),
    Files("a limit beyond the table", _parquet(lambda c: c), "right", more=("limit=400",)),
)  # fmt: skip
