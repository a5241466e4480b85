"""What can be saved of a damaged store: every row that still matches its checksum.

Must not know what a row means.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from harness.records import schema
from harness.records.schema import TABLES, Table

PAGE = 4096
SIZES = slice(28, 40)  # numbers of pages in the header; without them SQLite looks at the file


def repair(path: Path) -> tuple[int, Path | None]:
    """Replace a damaged store by one with its sound rows; a sound store stays as it is.

    Returns:
        How many rows were lost as far as they can be counted, and where the damaged file was moved;
        (0, None) for a sound store.
    """
    if not path.exists() or is_sound(path):
        return 0, None
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with closing(schema.connect(part)) as fresh:
        schema.create(fresh)
        seen, saved = _save(path, fresh)
    aside = _free_name(path)
    path.replace(aside)
    for suffix in ("-wal", "-shm"):  # SQLite would fold the old log into the new file
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    part.replace(path)
    return seen - saved, aside


def is_sound(path: Path) -> bool:
    """Whether every page and every row is what was written."""
    try:
        with closing(schema.forgiving(path)) as db:
            if schema.is_fresh(db):
                return True
            schema.check(db)
            schema.add_later(db)
            untraced = db.execute(f"SELECT 1 FROM responses WHERE {schema.UNTRACED} LIMIT 1")
            return untraced.fetchone() is None and all(
                table.holds(row)
                for table in TABLES
                for row in db.execute(f"SELECT * FROM {table.name}")
            )
    except sqlite3.DatabaseError:
        return False


def _save(path: Path, fresh: sqlite3.Connection) -> tuple[int, int]:
    """Copy the sound rows; how many rows were seen and saved."""
    seen = saved = 0
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".repair-") as scratch:
        copy = Path(scratch) / path.name
        shutil.copy(path, copy)
        log = path.with_name(path.name + "-wal")
        if log.exists():  # an interrupted run left it: fold it in before page 1 is touched
            shutil.copy(log, copy.with_name(log.name))
            _fold(copy)
        _restore_first_page(copy)
        with closing(schema.forgiving(copy)) as damaged:
            fresh.execute("BEGIN")
            for table in TABLES:
                found = {row[: len(table.keys)]: row for row in _readable(damaged, table)}
                seen += len(found)
                for row in found.values():
                    if table.holds(row):
                        fresh.execute(table.add, row)
                        saved += 1
            # An answer whose traces are lost is computed anew: they come with it only.
            saved -= fresh.execute(f"DELETE FROM responses WHERE {schema.UNTRACED}").rowcount
            fresh.execute("COMMIT")
    return seen, saved


def _fold(copy: Path) -> None:
    try:
        with closing(schema.connect(copy)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError:
        return  # what the log held is lost with it


def _restore_first_page(copy: Path) -> None:
    """Put the page of a new store in place of the first one: every store begins with the same."""
    model = copy.with_name("model")
    with closing(schema.connect(model)) as db:
        schema.create(db)
    page = bytearray(model.read_bytes()[:PAGE])
    page[SIZES] = bytes(SIZES.stop - SIZES.start)
    with copy.open("r+b") as file:
        file.write(page)


def _readable(db: sqlite3.Connection, table: Table) -> Iterator[tuple[object, ...]]:
    """The rows from both ends up to the first page that cannot be read."""
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{key} {direction}" for key in table.keys)
        try:
            yield from db.execute(f"SELECT * FROM {table.name} ORDER BY {order}")
            return
        except sqlite3.DatabaseError:
            continue


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside
