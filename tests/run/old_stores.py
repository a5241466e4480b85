"""Stores as earlier versions of this program wrote them, their tables spelled out as they were."""

import sqlite3
from pathlib import Path

from harness.store import APPLICATION_ID

BEFORE = """cell_key TEXT NOT NULL, row INTEGER NOT NULL, text TEXT NOT NULL,
token_ids TEXT NOT NULL, exposed_tokens INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
image_tokens INTEGER NOT NULL, evictable_tokens INTEGER NOT NULL, kept_tokens REAL NOT NULL,
kept_image REAL NOT NULL, kept_text REAL NOT NULL, cache_bytes INTEGER NOT NULL,
full_cache_bytes INTEGER NOT NULL, window_effective INTEGER, adaptive_active REAL, fallback TEXT"""
CUT = ", truncated_tokens INTEGER NOT NULL DEFAULT 0"
BEHIND = """, letter_logits TEXT NOT NULL, prefill_s REAL NOT NULL, score_s REAL NOT NULL,
compact_s REAL NOT NULL, decode_s REAL NOT NULL, PRIMARY KEY (cell_key, row)) WITHOUT ROWID"""
COLUMNS = {1: BEFORE + BEHIND, 2: BEFORE + CUT + BEHIND, 3: BEFORE + CUT + BEHIND}
TRACES = (
    "prompts (cell_key TEXT NOT NULL, row INTEGER NOT NULL, segments TEXT NOT NULL, tokens TEXT, "
    "images TEXT NOT NULL, PRIMARY KEY (cell_key, row)) WITHOUT ROWID",
    "kept (cell_key TEXT NOT NULL, row INTEGER NOT NULL, shares BLOB NOT NULL, "
    "PRIMARY KEY (cell_key, row)) WITHOUT ROWID",
)


def write(path: Path, version: int, logits: str = "{}") -> None:
    """A store of one answer: cell k, row 3."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"CREATE TABLE responses ({COLUMNS[version]}")
    db.execute("CREATE TABLE cells (cell_key TEXT PRIMARY KEY, description TEXT NOT NULL)")
    db.execute("CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
    for table in TRACES if version == 3 else ():
        db.execute(f"CREATE TABLE {table}")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {version}")
    cut = "" if version == 1 else "7, "
    db.execute(
        "INSERT INTO responses VALUES ('k', 3, 'B', '[1]', 1, 9, 4, 8, 4, 2, 2, 10, 20, 4, 0.5, "
        f"NULL, {cut}?, 0.1, 0.2, 0.3, 0.4)",
        (logits,),
    )
    db.close()


def forget_traces(path: Path) -> None:
    """Make a store of today one of version 2, its answers as they are."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("DROP TABLE prompts")
    db.execute("DROP TABLE kept")
    db.execute("ALTER TABLE responses DROP COLUMN nonfinite_tokens")
    db.execute("PRAGMA user_version = 2")
    db.close()
