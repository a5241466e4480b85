"""One SQLite file a run: answers and measurements of every cell on every question row, and prompts.

Knows rows and keys; must not know models, methods, tasks or how an answer is scored.
"""

import fcntl
import json
import os
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError

FILE_NAME = "responses.sqlite"
APPLICATION_ID = 0x45564354  # "EVCT": tells this store from any other SQLite file
SCHEMA_VERSION = 4
WHOLE = 65_520  # a share of 1; shares of most numbers of layers and heads are whole then

Values = Mapping[str, Mapping[str, object]]

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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the lock ends with the process, however it ends.

    Raises:
        UserError: the folder cannot be written, or another run holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be written ({error.strerror}): free or correct that "
            "path, or choose another with run.dir or run.name."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(
            f"Another run is writing to {folder}: wait until it ends, or choose another run.name."
        ) from error
    try:
        yield
    finally:
        os.close(handle)


class Store:
    """The responses of one run; open it while holding `locked(folder)`."""

    def __init__(self, path: Path) -> None:
        """Open or create the store.

        Raises:
            UserError: the file is there and is not a sound store; it is left as it is.
        """
        self.path = path
        self._db = self._open(path)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        db = None
        try:
            db = sqlite3.connect(path, isolation_level=None)
            fresh = _is_fresh(db)
            if not fresh:
                _check_sound(db)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            if fresh:
                _create(db)
            else:
                _migrate(db)
        except (sqlite3.DatabaseError, OSError) as error:
            if db is not None:
                db.close()
            remedy = "move that file away to begin anew, or choose another run.name"
            if isinstance(error, sqlite3.OperationalError):  # the place is at fault, not the file
                remedy = f"make {path.parent} writable, or choose another run.dir"
            raise UserError(
                f"The store {path} cannot be used ({error}); nothing was changed: {remedy}."
            ) from error
        return db

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()

    def __enter__(self) -> "Store":
        """Return the store itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close it."""
        self.close()

    def done(self, keys: Iterable[str]) -> dict[int, set[str]]:
        """For every row with answers: which of the given cells have one."""
        wanted = set(keys)
        rows: dict[int, set[str]] = {}
        for key, row in self._db.execute("SELECT cell_key, row FROM responses"):
            if key in wanted:
                rows.setdefault(row, set()).add(key)
        return rows

    def write(
        self,
        row: int,
        answers: Values,
        prompts: Values | None = None,
        kept: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Store one sample in one transaction; what is there already stays.

        Args:
            row: the question row in the whole data set.
            answers: cell key -> the values named in `FIELDS`.
            prompts: key of the full cache -> the values named in `PROMPT_FIELDS`.
            kept: cell key -> a share from 0 to 1 for each token, kept to 5 digits.
        """
        blobs = {key: {"shares": _packed(shares)} for key, shares in (kept or {}).items()}
        with self._transaction():
            self._insert("responses", row, FIELDS, answers)
            self._insert("prompts", row, PROMPT_FIELDS, prompts or {})
            self._insert("kept", row, ("shares",), blobs)

    def _insert(self, table: str, row: int, fields: Iterable[str], values: Values) -> None:
        names = ["cell_key", "row", *fields]
        self._db.executemany(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
            "ON CONFLICT (cell_key, row) DO NOTHING",
            [(key, row, *(each[f] for f in names[2:])) for key, each in values.items()],
        )

    def read(self, key: str) -> dict[int, dict[str, object]]:
        """All answers of a cell: row -> the values named in `FIELDS`."""
        return self._select("responses", key, FIELDS)

    def prompts(self, key: str) -> dict[int, dict[str, object]]:
        """The recorded prompts under a full cache's key: row -> the values of `PROMPT_FIELDS`."""
        return self._select("prompts", key, PROMPT_FIELDS)

    def kept(self, key: str) -> dict[int, NDArray[np.float32]]:
        """What a cell kept of the rows that were traced: row -> a share of each token."""
        found = self._select("kept", key, ("shares",))
        return {row: _unpacked(values["shares"]) for row, values in found.items()}

    def _select(self, table: str, key: str, fields: Collection[str]) -> dict[int, dict[str, Any]]:
        query = f"SELECT row, {', '.join(fields)} FROM {table} WHERE cell_key = ? ORDER BY row"
        return {
            row: dict(zip(fields, values, strict=True))
            for row, *values in self._db.execute(query, (key,))
        }

    def describe(self, cells: Mapping[str, Mapping[str, object]]) -> None:
        """Record what each cell key stands for, so that the file can be read on its own."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO cells (cell_key, description) VALUES (?, ?)",
                [(key, json.dumps(what, sort_keys=True)) for key, what in cells.items()],
            )

    def get(self, name: str) -> str | None:
        """A value noted about the run, or None."""
        found = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def put(self, name: str, value: str) -> None:
        """Note a value about the run, replacing an earlier one."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def count(self) -> tuple[int, int]:
        """How many cells and how many answers the file holds."""
        query = "SELECT count(DISTINCT cell_key), count(*) FROM responses"
        cells, answers = self._db.execute(query).fetchone()
        return cells, answers

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All statements inside, or none; UserError where the file cannot grow or be written."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk ended it already
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise UserError(
                f"The store {self.path} cannot be written ({error}); what it holds is kept: free "
                "space there, then give the same command again."
            ) from error


def _is_fresh(db: sqlite3.Connection) -> bool:
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return tables == 0 and _pragma(db, "application_id") == 0


def _check_sound(db: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError unless this is one of our files and its pages are sound."""
    if _pragma(db, "application_id") != APPLICATION_ID:
        raise sqlite3.DatabaseError("it was not made by this program")
    if _pragma(db, "user_version") not in range(1, SCHEMA_VERSION + 1):
        raise sqlite3.DatabaseError("it was made by another version of this program")
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError("its pages are damaged")


def _create(db: sqlite3.Connection) -> None:
    _run(
        db,
        _table("responses", FIELDS),
        "CREATE TABLE cells (cell_key TEXT PRIMARY KEY, description TEXT NOT NULL)",
        "CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        *TRACES,
        f"PRAGMA application_id = {APPLICATION_ID}",
    )


def _migrate(db: sqlite3.Connection) -> None:
    """Bring an earlier store to this version.

    Version 1 never cut prompts, 2 recorded none, 3 watched no logits: of those that are no numbers
    only the letters' are known.
    """
    version = _pragma(db, "user_version")
    added = [*(["truncated_tokens"] if version == 1 else []), "nonfinite_tokens"]
    columns = [f"ALTER TABLE responses ADD COLUMN {name} {FIELDS[name]}" for name in added]
    if version < SCHEMA_VERSION:
        _run(db, *columns, NONFINITE, *(TRACES if version < 3 else ()))


def _table(name: str, fields: Mapping[str, str]) -> str:
    columns = ", ".join(f"{field} {kind}" for field, kind in fields.items())
    return (
        f"CREATE TABLE {name} (cell_key TEXT NOT NULL, row INTEGER NOT NULL, {columns}, "
        "PRIMARY KEY (cell_key, row)) WITHOUT ROWID"
    )


NONFINITE = (
    "UPDATE responses SET nonfinite_tokens = 1 "
    "WHERE letter_logits LIKE '%: NaN%' OR letter_logits LIKE '%: Infinity%'"
)
TRACES = (_table("prompts", PROMPT_FIELDS), _table("kept", {"shares": "BLOB NOT NULL"}))


def _run(db: sqlite3.Connection, *statements: str) -> None:
    """All statements and the version that they lead to, or nothing."""
    version = f"PRAGMA user_version = {SCHEMA_VERSION}"
    for statement in ("BEGIN IMMEDIATE", *statements, version, "COMMIT"):
        db.execute(statement)


def _packed(shares: Sequence[float]) -> bytes:
    return zlib.compress(np.round(np.asarray(shares) * WHOLE).astype("<u2").tobytes(), level=1)


def _unpacked(blob: bytes) -> NDArray[np.float32]:
    return (np.frombuffer(zlib.decompress(blob), dtype="<u2") / WHOLE).astype(np.float32)


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
