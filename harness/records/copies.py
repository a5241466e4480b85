"""Reading a store that another machine may be writing: from a copy, so that nobody waits.

Must not know what an answer means.
"""

import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.records import repair, schema
from harness.records.schema import (
    CELLS,
    FETCHES,
    KEPT,
    ORIGINS,
    PLANS,
    PREFILLS,
    PROMPTS,
    RESPONSES,
)
from harness.records.store import Store

WAITS = (0.1, 0.5, 2.0)  # seconds until a copy that was made while the file grew is made again
BESIDE = ("-journal", "-wal")  # what SQLite needs to undo or redo a half-written change

Pairs = Mapping[str, set[int]]  # by cell key: the rows that have an answer


@contextmanager
def sound_copy(path: Path) -> Iterator[tuple[sqlite3.Connection, int]]:
    """Every entry of a store that is as it was written, and how many are not."""
    with TemporaryDirectory(prefix="evictbench-") as scratch:
        copy = Path(scratch) / path.name
        for wait in WAITS:
            _copy(path, copy)
            if repair.is_sound(copy):
                break
            time.sleep(wait)
        lost, _ = repair.repair(copy)
        with closing(schema.connect(copy)) as db:
            if schema.is_fresh(db):  # its writer has only just begun
                schema.create(db)
            yield db, lost


def _copy(path: Path, copy: Path) -> None:
    """The journal first: with it an older file comes out, without it a torn one."""
    for suffix in BESIDE:
        beside = copy.with_name(copy.name + suffix)
        beside.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            shutil.copy(path.with_name(path.name + suffix), beside)
    shutil.copy(path, copy)


def fold(db: sqlite3.Connection, store: Store) -> int:
    """Add a store's answers to another one, with their traces and plans; how many were new.

    Folding the same answers again adds nothing.
    """
    have = store.answered()

    def fresh(name: str) -> Iterator[tuple[object, ...]]:
        for row in db.execute(f"SELECT * FROM {name}"):
            if row[1] not in have.get(row[0], ()):
                yield row

    new = list(fresh(RESPONSES.name))
    told = ((table, db.execute(f"SELECT * FROM {table.name}")) for table in (CELLS, ORIGINS))
    traces = ((table, fresh(table.name)) for table in (PROMPTS, KEPT, PREFILLS, FETCHES))
    store.take([*told, *traces, (RESPONSES, new)])
    fold_plans(db, store)
    return len(new)


def plans(db: sqlite3.Connection) -> list[dict[str, object]]:
    """The plans that a store has on record."""
    names = list(PLANS.columns)
    rows = db.execute("SELECT * FROM plans").fetchall()
    return [dict(zip(names, row, strict=False)) for row in rows]


def fold_plans(db: sqlite3.Connection, store: Store) -> None:
    """Take over the plans that a store lacks; of two records of one plan the earlier one stays."""
    for plan in plans(db):
        mine = next(iter(store.plans(plan=str(plan["plan"]))), None)
        if mine is None:
            store.put_plan(plan)
        elif plan["reported"] and not mine["reported"]:
            store.put_plan({**mine, "reported": 1})
