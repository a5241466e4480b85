"""A small run whose right result is known: its data, its settings, and how its tables are checked.

Scores are worked out here from what was said and the key of the table, never with the harness.
"""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from scripts.campaign import tables
from scripts.campaign.outcome import WRONG, Verdict

TASK = "mmbench_mini"
METHODS, RATIO = ("random", "restkv"), 0.9
CELLS, ROWS = 4, 13  # with the full cache and the grey image
TABLES = ("cells", "abilities", "comparisons", "ablation", "verdicts", "prompts", "kept")
PLAN = ("plan", "registered", "methods", "factors", "weights", "data")


def weights(folder: Path, content: bytes = b"1") -> Path:
    """A folder that stands for weights where the scripted engine answers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return folder


def prepare(shared: Path) -> None:
    """Make the data and the weights that `settings` names."""
    tables.write(shared / "data", tables.rows())
    weights(shared / "weights")


def settings(shared: Path, runs: Path, *more: str) -> list[str]:
    """The small run: 2 methods at a ratio on 4 questions with 13 rows."""
    return [
        f"model.pretrained={shared / 'weights'}",
        f"tasks.{TASK}.overrides.dataset_path={shared / 'data'}",
        f"method=[{','.join(METHODS)}]",
        f"ratios=[{RATIO}]",
        "protocol=replay",
        f"run.dir={runs}",
        "wandb.mode=disabled",
        "analysis.resamples=100",
        *more,
    ]


def folders(runs: Path) -> list[Path]:
    """The folders of finished runs, oldest first."""
    found = [path.parent for path in runs.rglob("samples.parquet")]
    return sorted(found, key=lambda folder: (folder / "samples.parquet").stat().st_mtime)


def store(runs: Path) -> Path:
    """The one file of answers under a run.dir."""
    found = [path for path in runs.rglob("*.sqlite") if path.is_file()]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} stores under {runs}")
    return found[0]


def answers(path: Path) -> int:
    """How many answers a store holds, read without disturbing it."""
    if not path.exists():
        return 0
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    try:
        return int(db.execute("SELECT count(*) FROM responses").fetchone()[0])
    except sqlite3.DatabaseError:
        return 0
    finally:
        db.close()


def samples(folder: Path) -> pd.DataFrame:
    """A run's samples, in an order of their own."""
    frame = pd.read_parquet(folder / "samples.parquet")
    return frame.sort_values(["task", "cell_key", "row"]).reset_index(drop=True)


def truth(data: Path) -> dict[int, str]:
    """The right letter of every index of a table."""
    tables = [pd.read_parquet(path) for path in sorted(data.rglob("*.parquet"))]
    frame = pd.concat(tables)
    return dict(zip(frame["index"].astype(int), frame["answer"], strict=True))


def asked(folder: Path, data: Path) -> dict[int, str]:
    """The key of the questions that a run asked, each with all its rotations."""
    questions = {int(index) % tables.ROTATION for index in samples(folder)["index"]}
    return {i: a for i, a in truth(data).items() if i % tables.ROTATION in questions}


def checked(folder: Path, right: Mapping[int, str], cells: int | None = None) -> Verdict | None:
    """What is wrong with a run of lone letters, None where nothing is.

    Args:
        folder: of the run.
        right: the letter that is right, for every index that must have been asked.
        cells: how many columns of answers there must be.
    """
    frame = samples(folder)
    for key, rows in frame.groupby("cell_key"):
        indices = [int(index) for index in rows["index"]]
        if sorted(indices) != sorted(right):
            return Verdict(WRONG, f"cell {key} has rows {len(indices)} of {len(right)}")
        for _, row in rows.iterrows():
            hit = float(row["text"] == right[int(row["index"])])
            if bool(row.get("failed", False)):
                return Verdict(WRONG, f"row {row['index']} is called failed")
            if row["score"] != hit:
                said = f"{row['text']!r:.40} for {right[int(row['index'])]!r}"
                return Verdict(WRONG, f"index {row['index']}: {said} scores {row['score']}")
    if cells is not None and frame["cell_key"].nunique() != cells:
        return Verdict(WRONG, f"{frame['cell_key'].nunique()} cells in place of {cells}")
    return _summed(folder, frame)


def _summed(folder: Path, frame: pd.DataFrame) -> Verdict | None:
    """Whether the cells are the means of the samples."""
    cells = pd.read_parquet(folder / "cells.parquet").set_index("cell_key")
    for key, rows in frame.groupby("cell_key"):
        cell, mean = cells.loc[key], rows["score"].mean()
        if abs(cell["accuracy"] - mean) > 1e-9:
            return Verdict(WRONG, f"cell {key} says {cell['accuracy']}, its rows {mean}")
        whole = rows.groupby("question_id")["score"].min().eq(1).mean()
        if abs(cell["circular_accuracy"] - whole) > 1e-9:
            return Verdict(WRONG, f"cell {key} says circular {cell['circular_accuracy']}")
    return None


def same(folder: Path, reference: Path) -> Verdict | None:
    """What differs between the tables of two runs of one plan, None where nothing does."""
    ours, theirs = samples(folder), samples(reference)
    if len(ours) != len(theirs) or set(ours.columns) != set(theirs.columns):
        return Verdict(WRONG, f"{len(ours)} samples for {len(theirs)}, or other columns")
    for name in theirs.columns:
        differ = ~(ours[name].eq(theirs[name]) | (ours[name].isna() & theirs[name].isna()))
        if differ.fillna(True).any():
            row = int(differ.fillna(True).idxmax())
            pair = f"{ours[name][row]!r:.60} for {theirs[name][row]!r:.60}"
            return Verdict(WRONG, f"{name} of sample {row} is {pair}")
    for table in TABLES:
        if not _table(folder, table).equals(_table(reference, table)):
            return Verdict(WRONG, f"{table}.parquet differs")
    told, meant = (json.loads((f / "manifest.json").read_text()) for f in (folder, reference))
    changed = [name for name in PLAN if told.get(name) != meant.get(name)]
    return Verdict(WRONG, f"the manifest's {changed} differ") if changed else None


def _table(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.parquet"
    return pd.read_parquet(path) if path.exists() else pd.DataFrame()
