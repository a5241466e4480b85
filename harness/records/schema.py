"""The tables of the answers store and the checksum that every row of them carries.

Must not know what a value means.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

APPLICATION_ID = 0x45564354  # "EVCT": tells this store from any other SQLite file
VERSION = 4
CHECKSUM = "checksum"

#: What is stored for each (cell, row); the order is that of the table's columns.
FIELDS: dict[str, str] = {
    "text": "TEXT NOT NULL",
    "token_ids": "TEXT NOT NULL",
    "exposed_tokens": "INTEGER NOT NULL",
    "prompt_tokens": "INTEGER NOT NULL",
    "image_tokens": "INTEGER NOT NULL",
    "evictable_tokens": "INTEGER NOT NULL",
    "kept_tokens": "REAL NOT NULL",
    "kept_image": "REAL NOT NULL",
    "kept_text": "REAL NOT NULL",
    "cache_bytes": "INTEGER NOT NULL",
    "full_cache_bytes": "INTEGER NOT NULL",
    "window_effective": "INTEGER",
    "adaptive_active": "REAL",
    "fallback": "TEXT",
    "truncated_tokens": "INTEGER NOT NULL DEFAULT 0",
    "nonfinite_tokens": "INTEGER NOT NULL DEFAULT 0",
    "letter_logits": "TEXT NOT NULL",
    "prefill_s": "REAL NOT NULL",
    "score_s": "REAL NOT NULL",
    "compact_s": "REAL NOT NULL",
    "decode_s": "REAL NOT NULL",
}

#: What is stored of the prompt of a row, under the key of the full cache; JSON, tokens of a few.
PROMPT_FIELDS = {"segments": "TEXT NOT NULL", "tokens": "TEXT", "images": "TEXT NOT NULL"}

#: What is stored of a sparse prefill of a row, under the key of the full cache: the part of its
#: prefill_s in which blocks were chosen; JSON: layer -> the share of the causal ones it computed.
PREFILL_FIELDS = {"search_s": "REAL NOT NULL", "computed": "TEXT NOT NULL"}

#: What is stored of a cell some of whose prompt entries lie on the host: their bytes when the
#: prompt has been evicted, and the bytes that came from there in all passes behind it.
FETCH_FIELDS = dict.fromkeys(("host_bytes", "fetched_bytes", "passes"), "INTEGER NOT NULL")

CASTS: dict[str, Callable[[Any], object]] = {
    "TEXT": str,
    "INTEGER": int,
    "REAL": float,
    "BLOB": bytes,
}


@dataclass(frozen=True)
class Table:
    """A table: its name, its key columns, its other columns; a checksum comes last."""

    name: str
    keys: Mapping[str, str]
    fields: Mapping[str, str]

    @cached_property
    def columns(self) -> dict[str, str]:
        """All columns but the checksum, with their types."""
        return {**self.keys, **self.fields}

    @cached_property
    def create(self) -> str:
        """The statement that makes it."""
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns.items())
        return (
            f"CREATE TABLE {self.name} ({columns}, {CHECKSUM} BLOB NOT NULL, "
            f"PRIMARY KEY ({', '.join(self.keys)})) WITHOUT ROWID"
        )

    @cached_property
    def add(self) -> str:
        """The statement that adds a row, checksum included, unless its keys are there."""
        return f"INSERT INTO {self._values} ON CONFLICT ({', '.join(self.keys)}) DO NOTHING"

    @cached_property
    def replace(self) -> str:
        """The statement that puts a row in place of one with the same keys."""
        return f"INSERT OR REPLACE INTO {self._values}"

    @property
    def _values(self) -> str:
        names = [*self.columns, CHECKSUM]
        return f"{self.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"

    def sealed(self, values: Mapping[str, object]) -> tuple[object, ...]:
        """A row as SQLite will give it back, with its checksum."""
        row = [None if values[k] is None else cast(values[k]) for k, cast in self._casts]
        return (*row, self.checksum(row))

    @cached_property
    def _casts(self) -> list[tuple[str, Callable[[Any], object]]]:
        return [(name, CASTS[kind.partition(" ")[0]]) for name, kind in self.columns.items()]

    def checksum(self, row: Sequence[object]) -> bytes:
        """Eight bytes over the table's name, the keys and the values."""
        return hashlib.blake2b(repr((self.name, *row)).encode(), digest_size=8).digest()

    def holds(self, row: Sequence[object]) -> bool:
        """Whether a row that was read, checksum last, is what was written."""
        return self.checksum(row[:-1]) == row[-1]


_ROW = {"cell_key": "TEXT NOT NULL", "row": "INTEGER NOT NULL"}

#: traces: how many entries of prompts and kept were written with an answer.
_BESIDE = {"origin": "TEXT NOT NULL", "traces": "INTEGER NOT NULL"}

RESPONSES = Table("responses", _ROW, {**FIELDS, **_BESIDE})
PROMPTS = Table("prompts", _ROW, PROMPT_FIELDS)
KEPT = Table("kept", _ROW, {"shares": "BLOB NOT NULL"})
PREFILLS = Table("prefills", _ROW, PREFILL_FIELDS)
FETCHES = Table("fetches", _ROW, FETCH_FIELDS)
CELLS = Table("cells", {"cell_key": "TEXT NOT NULL"}, {"description": "TEXT NOT NULL"})
ORIGINS = Table("origins", {"origin": "TEXT NOT NULL"}, {"description": "TEXT NOT NULL"})
PLANS = Table(
    "plans",
    {"plan": "TEXT NOT NULL"},
    {
        "subject": "TEXT NOT NULL",
        "rules": "TEXT NOT NULL",
        "answered": "TEXT NOT NULL",
        "changed": "TEXT NOT NULL",
        "folder": "TEXT NOT NULL",
        "reported": "INTEGER NOT NULL",
    },
)
NOTES = Table("notes", {"name": "TEXT NOT NULL"}, {"value": "TEXT NOT NULL"})

#: Which answers came with traces that are gone.
UNTRACED = """traces > 0 AND traces > (
    SELECT count(*) FROM prompts AS p
    WHERE p.cell_key = responses.cell_key AND p.row = responses.row
) + (
    SELECT count(*) FROM kept AS k
    WHERE k.cell_key = responses.cell_key AND k.row = responses.row
)"""
TABLES = (RESPONSES, PROMPTS, KEPT, CELLS, ORIGINS, PLANS, NOTES, PREFILLS, FETCHES)
LATER = (PREFILLS, FETCHES)  # which files that were made before do not have


def is_fresh(db: sqlite3.Connection) -> bool:
    """Whether nothing was ever written to this file."""
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return tables == 0 and pragma(db, "application_id") == 0


def create(db: sqlite3.Connection) -> None:
    """Make all tables, or none."""
    marks = (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {VERSION}")
    made = [table.create for table in TABLES]
    for statement in ("BEGIN IMMEDIATE", *made, *marks, "COMMIT"):
        db.execute(statement)


def check(db: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError unless this is one of our files and its pages are sound."""
    if pragma(db, "application_id") != APPLICATION_ID:
        raise sqlite3.DatabaseError("it was not made by this program")
    if pragma(db, "user_version") != VERSION:
        raise sqlite3.DatabaseError("it was made by another version of this program")
    found = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    absent = {table.name: table.create for table in LATER if table.name not in found}
    if {**found, **absent} != {table.name: table.create for table in TABLES}:
        raise sqlite3.DatabaseError("its tables are damaged")
    if db.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
        raise sqlite3.DatabaseError("its pages are damaged")


def add_later(db: sqlite3.Connection) -> None:
    """Make the tables that came after a sound file of ours was made."""
    for table in LATER:
        db.execute(table.create.replace("TABLE", "TABLE IF NOT EXISTS", 1))


def answered(db: sqlite3.Connection) -> dict[str, set[int]]:
    """Which rows of which cells have an answer."""
    found: dict[str, set[int]] = {}
    for key, row in db.execute("SELECT cell_key, row FROM responses"):
        found.setdefault(key, set()).add(row)
    return found


def pragma(db: sqlite3.Connection, name: str) -> int:
    """A number that SQLite keeps about the file."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def connect(path: object) -> sqlite3.Connection:
    """A connection that waits for other writers."""
    return sqlite3.connect(str(path), isolation_level=None, timeout=60)


def forgiving(path: object) -> sqlite3.Connection:
    """A connection that reads damaged text as well."""
    db = connect(path)
    db.text_factory = _text
    return db


def _text(stored: bytes) -> str:
    return stored.decode(errors="surrogateescape")
