"""The files of a run folder read back: what is damaged, missing or of another version is named.

Knows the files; must not know what a report makes of them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import UserError
from harness.records.atomic import replacing
from harness.stats.frame import REQUIRED
from harness.stats.plan import Pair, Plan

MANIFEST = "manifest.json"
SAMPLES, PROMPTS, KEPT = "samples.parquet", "prompts.parquet", "kept.parquet"
SUMS = "SHA256SUMS"  # of what a report is read from, as `sha256sum -c` takes it
REMEDY = "give the sweep's command again, which writes it from the stored answers"

#: What a manifest holds, and of which type; all but the plan may be missing.
TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "question": str,
    "caveat": str,
    "told": list,
    "plan": dict,
    "registered": bool,
    "registration": str,
    "methods": dict,
    "titles": dict,
    "traits": dict,
    "factors": dict,
    "window_weights": dict,
    "weights": str,
    "data": dict,
    "provenance": dict,
    "samples": str,
    "unfinished": dict,
}
NESTED = ("methods", "traits", "factors", "window_weights")  # mappings of mappings
COLUMNS = {
    SAMPLES: REQUIRED,
    PROMPTS: ["model", "task", "protocol", "row", "segments", "tokens", "images", "image"],
    KEPT: ["model", "task", "protocol", "method", "cell_key", "row", "shares"],
}


def seal(folder: Path) -> None:
    """Put the sums of everything that a report is read from beside it."""
    lines = [f"{_sum(path)}  {path.relative_to(folder)}\n" for path in _sources(folder)]
    with replacing(folder / SUMS) as part:
        part.write_text("".join(lines), encoding="utf-8")


def check(folder: Path) -> None:
    """Raise UserError for a file that is not what was written; earlier folders have no sums."""
    sums = folder / SUMS
    if not sums.is_file():
        return
    for line in _text(sums).splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if not name or not path.is_file() or _sum(path) != digest:
            where = path if name else sums
            raise UserError(f"{where} is not what the run wrote (see {sums}): {REMEDY}.")


def is_finished(folder: Path) -> bool:
    """Whether the reports in a folder are about all that was asked, sound or not."""
    return (folder / MANIFEST).is_file() and not manifest(folder).get("unfinished")


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest, its parts of the right types.

    Raises:
        UserError: it is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({line(error)}): {REMEDY}.") from error
    if not isinstance(found, dict) or "plan" not in found:
        raise UserError(f"{path} is not the manifest of a run, for it has no plan: {REMEDY}.")
    for name, value in found.items():
        _check_type(path, name, value)
    _check_plan(path, found["plan"])
    return found


def table(folder: Path, name: str) -> pd.DataFrame:
    """A table of the folder; an empty one for prompts and kept that are not there.

    Raises:
        UserError: it is damaged, or another table than that.
    """
    path = folder / name
    if name != SAMPLES and not path.exists():
        return pd.DataFrame()
    try:
        frame = pd.read_parquet(path, page_checksum_verification=True)
    except Exception as error:  # the file may hold anything
        raise UserError(f"{path} cannot be read ({line(error)}): {REMEDY}.") from error
    missing = [column for column in COLUMNS[name] if column not in frame]
    if missing:
        raise UserError(
            f"{path} is not what a sweep writes, for it lacks {_list(missing)}: {REMEDY}."
        )
    if name == SAMPLES and frame.empty:
        raise UserError(f"{path} holds no rows: {REMEDY}.")
    return frame


def line(error: BaseException) -> str:
    """The first line of what an error says, without the names of classes."""
    said = next(iter(str(error).splitlines()), "")
    return re.sub(r"\b\w+(Exception|Error)\b:? ?", "", said).rstrip(".:") or "it is damaged"


def _sources(folder: Path) -> list[Path]:
    found = [folder / name for name in (MANIFEST, SAMPLES, PROMPTS, KEPT)]
    found += sorted((folder / "images").glob("*.png"))
    return [path for path in found if path.is_file()]


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({line(error)}): {REMEDY}.") from error


def _check_type(path: Path, name: str, value: object) -> None:
    right = isinstance(value, TYPES.get(name, object))
    if right and name in NESTED and isinstance(value, Mapping):
        right = all(isinstance(inner, Mapping) for inner in value.values())
    if right and name == "window_weights" and isinstance(value, Mapping):
        right = all(_numbers(inner.get("weights")) for inner in value.values())
    if not right:
        raise UserError(
            f"{path} is damaged or of another version, for its {name} is {_short(value)}: {REMEDY}."
        )


def _check_plan(path: Path, plan: Mapping[str, object]) -> None:
    usual = Plan()
    known = {field.name: getattr(usual, field.name) for field in fields(usual)}
    for name, value in plan.items():
        if name not in known:
            raise UserError(f"{path} is of another version, for its plan has {name!r}: {REMEDY}.")
        kind = str if isinstance(known[name], str) else (int, float)
        right = not isinstance(value, bool) and isinstance(value, kind)
        if name == "contrasts":
            right = isinstance(value, list) and all(map(_is_pair, value))
        if not right:
            raise UserError(f"{path} is damaged, for its plan has {name}={value!r}: {REMEDY}.")


def _is_pair(value: object) -> bool:
    """Whether it is a `stats.plan.Pair` as JSON holds it."""
    names = {field.name for field in fields(Pair)}
    if (
        not isinstance(value, Mapping)
        or not {"label", "against", "called"} <= value.keys() <= names
    ):
        return False
    varies = value.get("varies", [])
    texts = [text for name, text in value.items() if name != "varies"]
    return isinstance(varies, list) and all(isinstance(one, str) for one in [*texts, *varies])


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, int | float) for one in value)


def _list(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
