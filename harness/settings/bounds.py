"""What one value of a setting may be, whatever it sets: a count, a name, a folder, a text.

Knows no settings by name; each refusal is a sentence with a remedy.
"""

import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError

SEEDS = 2**32 - 1  # the largest that numpy takes
TOKENS = 2**31 - 1  # more than any prompt has
NAME = 200  # characters of a name: with what is added to it, a file system takes 255 bytes
PATH = 3_000  # characters of a path, of 4,096
FREE = re.compile(r"tasks\.[^.]+\.(generation|overrides|data)\.|model\.caveat")  # may hold lines


def check_values(config: Any) -> None:
    """Refuse what no file, table or record can hold: odd characters, and numbers that are none."""
    for name, value in _values(config):
        if isinstance(value, float) and not math.isfinite(value) and FREE.match(name):
            raise UserError(f"{name}={value} is no number: give another value.")
        if not isinstance(value, str):
            continue
        bad = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs")), None)
        if bad is not None and (not FREE.match(name) or bad not in "\n\t\r"):
            raise UserError(
                f"{name}={value!r} holds the character {bad!r}, which is not text: leave it out."
            )


def _values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested settings with the dotted name of its place; keys are values too."""
    if is_dataclass(node):
        for one in fields(node):
            yield from _values(getattr(node, one.name), f"{prefix}{one.name}.")
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield f"a name in {prefix.rstrip('.')}", str(key)
            yield from _values(value, f"{prefix}{key}.")
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _values(value, prefix)
    else:
        yield prefix.rstrip("."), node


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise UserError for a value that is none of these."""
    if value not in allowed:
        raise UserError(f"{name}={shortened(value)} is not known: use one of {', '.join(allowed)}.")


def check_count(name: str, value: object, most: int, other: str = "auto or ") -> None:
    """Raise UserError for what is no whole number from 1 to `most`; `auto` is one where it may."""
    if value == "auto" and other:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"{name}={shortened(value)} is not a count: use {other}a whole number from 1."
        )
    at_most(name, value, most)


def at_most(name: str, value: int | None, most: int, other: str = "") -> None:
    """Raise UserError for a number above `most`; `other` is what may be given as well."""
    if value is not None and value > most:
        also = f", {other}" if other else ""
        raise UserError(
            f"{name}={shortened(value)} is too large: use a whole number up to {most:,}{also}."
        )


def seconds(name: str, value: str | None) -> float | None:
    """A time such as 90s, 10m, 1.5h or 1d in seconds; UserError for what is none."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", str(value))
    if not found or not float(found[1]):
        raise UserError(
            f"{name}={shortened(value)} is no time: give a number and a unit, such as 90s, 10m or "
            "1h."
        )
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def check_name(name: str, value: str) -> None:
    """Raise UserError for what cannot name a folder or a label."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._=+-]*", value):
        raise UserError(
            f"{name}={shortened(value)!r} cannot name a folder or a label: use letters, digits and "
            ". _ - = +, beginning with a letter, a digit or _."
        )
    if len(value) > NAME:
        raise UserError(
            f"{name}={shortened(value)} has {len(value)} characters, too many for a folder: use "
            f"{NAME} at most."
        )


def check_folder(name: str, value: str) -> None:
    """Raise UserError for what no file system takes as a path."""
    if not value.strip():
        raise UserError(f"{name} is empty: name a folder.")
    if len(value) > PATH or any(len(os.fsencode(part)) > 255 for part in Path(value).parts):
        raise UserError(f"{name}={shortened(value)} is too long for a file system: use a shorter.")


def shortened(value: object, most: int = 80) -> str:
    """A value as text that fits a sentence."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 20]}...{text[-10:]}"
