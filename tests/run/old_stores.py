"""Stores as earlier versions of this program wrote them, their tables spelled out as they were."""

import json
import sqlite3
import zlib
from pathlib import Path

from harness.records.schema import APPLICATION_ID

BEFORE = """cell_key TEXT NOT NULL, row INTEGER NOT NULL, text TEXT NOT NULL,
token_ids TEXT NOT NULL, exposed_tokens INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
image_tokens INTEGER NOT NULL, evictable_tokens INTEGER NOT NULL, kept_tokens REAL NOT NULL,
kept_image REAL NOT NULL, kept_text REAL NOT NULL, cache_bytes INTEGER NOT NULL,
full_cache_bytes INTEGER NOT NULL, window_effective INTEGER, adaptive_active REAL, fallback TEXT"""
CUT = ", truncated_tokens INTEGER NOT NULL DEFAULT 0"
BEHIND = """, letter_logits TEXT NOT NULL, prefill_s REAL NOT NULL, score_s REAL NOT NULL,
compact_s REAL NOT NULL, decode_s REAL NOT NULL, PRIMARY KEY (cell_key, row)) WITHOUT ROWID"""
COLUMNS = {1: BEFORE + BEHIND, 2: BEFORE + CUT + BEHIND, 3: BEFORE + CUT + BEHIND}
KEY = "cell_key TEXT NOT NULL, row INTEGER NOT NULL"
WEIGHTS = {"k": "w", "of other weights": "v"}


def write(path: Path, version: int, logits: str = "{}") -> None:
    """A store of one answer for each of two checkpoints, in row 3; version 3 traced it as well."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"CREATE TABLE responses ({COLUMNS[version]}")
    db.execute("CREATE TABLE cells (cell_key TEXT PRIMARY KEY, description TEXT NOT NULL)")
    db.execute("CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
    db.execute("""INSERT INTO notes VALUES ('software', '{"torch": "1.0"}')""")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {version}")
    cut = "" if version == 1 else "7, "
    for key, weights in WEIGHTS.items():
        described = json.dumps({"cell": {}, "context": {"weights": weights}})
        db.execute("INSERT INTO cells VALUES (?, ?)", (key, described))
        db.execute(
            f"INSERT INTO responses VALUES ('{key}', 3, 'B', '[1]', 1, 9, 4, 8, 4, 2, 2, 10, 20, "
            f"4, 0.5, NULL, {cut}?, 0.1, 0.2, 0.3, 0.4)",
            (logits,),
        )
    if version == 3:
        _trace(db)
    db.close()


def _trace(db: sqlite3.Connection) -> None:
    fields = "segments TEXT NOT NULL, tokens TEXT, images TEXT NOT NULL"
    end = "PRIMARY KEY (cell_key, row)) WITHOUT ROWID"
    db.execute(f"CREATE TABLE prompts ({KEY}, {fields}, {end}")
    db.execute(f"CREATE TABLE kept ({KEY}, shares BLOB NOT NULL, {end}")
    db.execute("INSERT INTO prompts VALUES ('k', 3, '[]', NULL, '[]')")
    shares = zlib.compress((65_520).to_bytes(2, "little") + (32_760).to_bytes(2, "little"))
    db.execute("INSERT INTO kept VALUES ('k', 3, ?)", (shares,))


def of_version_2(store: Path, old: Path) -> None:
    """Write what a store of today holds as an earlier run folder held it, without traces."""
    today = sqlite3.connect(store)
    columns = [row[1] for row in today.execute("PRAGMA table_info(responses)")]
    names = [
        name for name in columns if name not in ("nonfinite_tokens", "origin", "traces", "checksum")
    ]
    write(old, 2)
    db = sqlite3.connect(old, isolation_level=None)
    for table in ("responses", "cells"):
        db.execute(f"DELETE FROM {table}")
    marks = ", ".join("?" * len(names))
    query = f"SELECT {', '.join(names)} FROM responses"
    db.execute("BEGIN")
    db.executemany(f"INSERT INTO responses VALUES ({marks})", today.execute(query).fetchall())
    cells = today.execute("SELECT cell_key, description FROM cells").fetchall()
    db.executemany("INSERT INTO cells VALUES (?, ?)", cells)
    db.execute("COMMIT")
    db.close()
    today.close()
