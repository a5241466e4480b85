"""One SQLite file a run: the answers and measurements of every cell on every question row.

Knows rows and keys; must not know models, methods, tasks or how an answer is scored.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError

FILE_NAME = "responses.sqlite"
APPLICATION_ID = 0x45564354  # "EVCT": tells this store from any other SQLite file
SCHEMA_VERSION = 2

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
    "letter_logits": "TEXT NOT NULL",
    "prefill_s": "REAL NOT NULL",
    "score_s": "REAL NOT NULL",
    "compact_s": "REAL NOT NULL",
    "decode_s": "REAL NOT NULL",
}


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
            elif _pragma(db, "user_version") == 1:
                _add_truncated(db)
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

    def write(self, row: int, answers: Mapping[str, Mapping[str, object]]) -> None:
        """Store one sample in one transaction; an answer that is there already stays.

        Args:
            row: the question row in the whole data set.
            answers: cell key -> the values named in `FIELDS`.
        """
        columns = ", ".join(("cell_key", "row", *FIELDS))
        marks = ", ".join("?" * (len(FIELDS) + 2))
        records = [(key, row, *(values[f] for f in FIELDS)) for key, values in answers.items()]
        with self._transaction():
            self._db.executemany(
                f"INSERT INTO responses ({columns}) VALUES ({marks}) "
                "ON CONFLICT (cell_key, row) DO NOTHING",
                records,
            )

    def read(self, key: str) -> dict[int, dict[str, object]]:
        """All answers of a cell: row -> the values named in `FIELDS`."""
        columns = ", ".join(FIELDS)
        query = f"SELECT row, {columns} FROM responses WHERE cell_key = ? ORDER BY row"
        return {
            row: dict(zip(FIELDS, values, strict=True))
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
    if _pragma(db, "user_version") not in (1, SCHEMA_VERSION):
        raise sqlite3.DatabaseError("it was made by another version of this program")
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError("its pages are damaged")


def _create(db: sqlite3.Connection) -> None:
    columns = ", ".join(f"{name} {kind}" for name, kind in FIELDS.items())
    statements: Sequence[str] = (
        "BEGIN IMMEDIATE",
        f"CREATE TABLE responses (cell_key TEXT NOT NULL, row INTEGER NOT NULL, {columns}, "
        "PRIMARY KEY (cell_key, row)) WITHOUT ROWID",
        "CREATE TABLE cells (cell_key TEXT PRIMARY KEY, description TEXT NOT NULL)",
        "CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        f"PRAGMA application_id = {APPLICATION_ID}",
        f"PRAGMA user_version = {SCHEMA_VERSION}",
        "COMMIT",
    )
    for statement in statements:
        db.execute(statement)


def _add_truncated(db: sqlite3.Connection) -> None:
    """Bring a store of version 1, whose prompts were never cut, to version 2."""
    column = FIELDS["truncated_tokens"]
    for statement in (
        "BEGIN IMMEDIATE",
        f"ALTER TABLE responses ADD COLUMN truncated_tokens {column}",
        "PRAGMA user_version = 2",
        "COMMIT",
    ):
        db.execute(statement)


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
