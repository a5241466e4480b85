"""Answers of earlier versions, which kept them in the run folders: copied into the answers store.

The old files stay as they are. Must not know what an answer means.
"""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.records import schema
from harness.records.store import Store

FILE = "responses.sqlite"
VERSIONS = range(1, 4)
UNKNOWN = {"host": "unknown"}  # earlier versions noted one set of versions for a whole run


def absorb(store: Store, run_dir: Path, weights: str, say: Callable[[str], object]) -> None:
    """Copy what run folders hold of these weights, each file once."""
    for path in sorted(run_dir.glob(f"*/{FILE}")):
        state = f"{path.stat().st_size} {path.stat().st_mtime_ns}"
        note = f"absorbed {path.resolve()}"
        if store.get(note) == state:
            continue
        try:
            with closing(schema.connect(path)) as old:
                count = _copy(old, store, weights)
        except (sqlite3.DatabaseError, ValueError) as error:
            say(f"note: {path} cannot be read ({error}), so its answers are computed anew")
            continue
        if count:
            say(f"{count:,} answers were taken over from {path}")
        store.put(note, state)


def _copy(old: sqlite3.Connection, store: Store, weights: str) -> int:
    """Copy the cells of these weights; returns the number of answers."""
    old.execute("PRAGMA query_only=1")
    if schema.pragma(old, "application_id") != schema.APPLICATION_ID:
        raise sqlite3.DatabaseError("it was not made by this program")
    if schema.pragma(old, "user_version") not in VERSIONS:
        raise sqlite3.DatabaseError("it was made by another version of this program")
    if old.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
        raise sqlite3.DatabaseError("its pages are damaged")
    described = dict(old.execute("SELECT cell_key, description FROM cells"))
    cells = {key: json.loads(text) for key, text in described.items()}
    own = {key: what for key, what in cells.items() if what["context"].get("weights") == weights}
    store.computed_by(UNKNOWN | _software(old))
    store.describe(own)
    return sum(_copy_cell(old, store, key) for key in own)


def _copy_cell(old: sqlite3.Connection, store: Store, key: str) -> int:
    answers = _rows(old, "responses", key)
    prompts, kept = _rows(old, "prompts", key), _rows(old, "kept", key)
    for row, values in answers.items():
        shares = {key: bytes(kept[row]["shares"])} if row in kept else None
        # Earlier versions watched no logits: of those that are no numbers only the letters' tell.
        logits = str(values["letter_logits"])
        failed = ": NaN" in logits or ": Infinity" in logits
        new = {"truncated_tokens": 0, "nonfinite_tokens": int(failed)}
        told = {key: prompts[row]} if row in prompts else None
        store.write(row, {key: new | values}, told, shares)
    return len(answers)


def _rows(old: sqlite3.Connection, table: str, key: str) -> dict[int, dict[str, Any]]:
    """row -> values by column; empty where that version had no such table."""
    names = [one[1] for one in old.execute(f"PRAGMA table_info({table})")]
    if not names:
        return {}
    query = f"SELECT * FROM {table} WHERE cell_key = ?"
    found = [dict(zip(names, row, strict=True)) for row in old.execute(query, (key,))]
    return {int(one["row"]): one for one in found}


def _software(old: sqlite3.Connection) -> dict[str, str]:
    found = old.execute("SELECT value FROM notes WHERE name = 'software'").fetchone()
    known = json.loads(found[0]) if found else {}
    return {str(name): str(value) for name, value in known.items()}
