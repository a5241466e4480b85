"""What is wrong with the files of a data set that cannot be loaded, in words.

Asked only when loading failed, so it may read everything. Knows folders of parquet files as the
datasets library reads them, and files of JSON lines; must not know tasks.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
LINE = 200  # characters of an error of a library in a sentence


def of_folder(folder: Path, config: str | None) -> str | None:
    """What is wrong with a folder of parquet files; None where nothing is found.

    Args:
        folder: of the data set.
        config: the configuration that is asked for.
    """
    head, why = _head(folder / CARD)
    if why:
        return why
    files = sorted(folder.rglob("*.parquet"))
    why = next(filter(None, map(_unreadable, files)), None) or _mixed(files) or _rowless(files)
    if why:
        return why
    names = [str(one.get("config_name", "default")) for one in head] or ["default"]
    if config is not None and config not in names:
        return (
            f"{folder} has no configuration {config} (it has {', '.join(names)}); list it in "
            f"{folder / CARD} under configs, with its splits and files, or set "
            "overrides.dataset_name"
        )
    return None


def _head(card: Path) -> tuple[list[Mapping[str, Any]], str | None]:
    """The configurations that a README lists, or what is wrong with it."""
    if not card.is_file():
        return [], None
    try:
        text = card.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return [], f"{card} cannot be read ({said(error)}); write it as UTF-8 text"
    if not text.startswith("---"):
        return [], None
    head, end, _ = text[3:].partition("\n---")
    try:
        read = yaml.safe_load(head) if end else None
    except yaml.YAMLError as error:
        return [], f"the head of {card} is no YAML ({said(error)}); correct it"
    listed = read.get("configs") if isinstance(read, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        known = "its head does not end with ---" if not end else "its head lists no configs"
        return [], f"{card} does not say what the folder holds ({known}); correct it"
    return listed, None


def _unreadable(file: Path) -> str | None:
    import pyarrow.parquet as pq

    try:
        if not file.stat().st_size:
            return f"{file} is an empty file; build or download it anew"
        with pq.ParquetFile(file) as opened:
            for _ in opened.iter_batches(batch_size=1024):
                pass
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid and others
        return f"{file} is no whole parquet file ({said(error)}); build or download it anew"
    return None


def _mixed(files: Iterable[Path]) -> str | None:
    """Two files of one folder whose columns differ."""
    import pyarrow.parquet as pq

    first: dict[Path, tuple[Path, dict[str, str]]] = {}
    for file in files:
        schema = {field.name: str(field.type) for field in pq.read_schema(file)}
        other, known = first.setdefault(file.parent, (file, schema))
        differing = sorted(n for n in {*schema, *known} if schema.get(n) != known.get(n))
        if differing:
            name = differing[0]
            return (
                f"column {name} is {known.get(name, 'missing')} in {other} and "
                f"{schema.get(name, 'missing')} in {file.name}; write both with one schema"
            )
    return None


def _rowless(files: Iterable[Path]) -> str | None:
    import pyarrow.parquet as pq

    empty = (file for file in files if not pq.read_metadata(file).num_rows)
    return next((f"{file} has no row; build or download it anew" for file in empty), None)


def of_lines(files: Any) -> str | None:
    """What is wrong with files of JSON lines, nested as dataset_kwargs nest them."""
    return next(filter(None, map(_broken, map(Path, _names(files)))), None)


def _names(files: Any) -> Iterator[str]:
    if isinstance(files, Mapping):
        files = list(files.values())
    if isinstance(files, str):
        yield files
    elif isinstance(files, list | tuple):
        for one in files:
            yield from _names(one)


def _broken(file: Path) -> str | None:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        return f"{file} cannot be read ({said(error)}); it must be UTF-8 text, a row a line"
    kinds: dict[str, tuple[str, int]] = {}
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        return f"{file} is empty; build or download it anew"
    for number, line in rows:
        why = _line(line, number, kinds)
        if why:
            return f"line {number} of {file} {why}; correct it"
    return None


def _line(line: str, number: int, kinds: dict[str, tuple[str, int]]) -> str | None:
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"is no JSON ({said(error)})"
    if not isinstance(row, dict):
        return "is no JSON object"
    for name, value in row.items():
        kind = _kind(value)
        if kind is None:
            continue
        known, where = kinds.setdefault(name, (kind, number))
        if kind != known:
            return f"has {kind} as {name}, and line {where} has {known}"
    return _surrogate(row)


def _kind(value: Any) -> str | None:
    """The kind of a JSON value, in words; None for null, which goes with any."""
    if isinstance(value, list):
        inner = sorted({_kind(one) or "" for one in value} - {""})
        return f"a list of {' and '.join(inner)}" if inner else None
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", dict: "fields"}
    return names.get(type(value))


def _surrogate(row: Mapping[str, Any]) -> str | None:
    for name, value in row.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return f"has half a character (a lone surrogate) as {name}"
    return None


def said(error: BaseException) -> str:
    """The first line of what a library says, for a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"\b\w+(?:Error|Exception): ", "", text)
    return text[:LINE].rstrip(".")
