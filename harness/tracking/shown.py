"""Rows worth looking at: a sample of the answers, and the answers that eviction changed.

Chooses rows and lays them out, without their images; must not know wandb.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness import stats
from harness.report import summary, tables
from harness.report.study import Study

IMAGE = "image"  # the column that a picture is put into
SAMPLE_COLUMNS = [
    "row", "question_id", IMAGE, "category", "question", "answer", "method", "ratio", "budget",
    "text", "parsed", "score", "correct", "failed", "exposed_tokens", "kept_fraction",
]  # fmt: skip
FLIP_COLUMNS = [
    "ratio", "budget", "row", "question_id", IMAGE, "category", "question", "answer", "changed",
]  # fmt: skip
SAID = "{} said"
QUESTIONS, CHANGED = 50, 20


def samples(study: Study, questions: int = QUESTIONS) -> pd.DataFrame:
    """Questions x (references and every method at one setting), columns `SAMPLE_COLUMNS`.

    The first rotation of up to `questions` questions, spread evenly over all of them, at ratio 0.9
    where it was run, else at the strongest.
    """
    cells = pd.concat([tables.references(study.cells), tables.compressed(study.cells)])
    place = cells.apply(tables.setting, axis=1).eq(summary.focus(study.cells))
    keys = cells["cell_key"][stats.roles(cells).ne("method") | place]
    rows = study.samples[study.samples["cell_key"].isin(keys)]
    rows = rows[rows["row"].isin(_first_rows(study.samples, questions))]
    rows = rows.assign(kept_fraction=rows["kept_tokens"] / rows["evictable_tokens"])
    return _columns(rows.sort_values("row", kind="stable"), SAMPLE_COLUMNS)


def _first_rows(frame: pd.DataFrame, questions: int) -> list[int]:
    first = frame.sort_values("index").drop_duplicates("question_id").sort_values("question_id")
    return _spread(list(first["row"]), questions)


def flips(study: Study, changed: int = CHANGED) -> pd.DataFrame:
    """Rows whose answer eviction changed: `FLIP_COLUMNS`, then "<line> said" of every line.

    A row of the table is a question row at one setting, where at least one method's parsed answer
    is not the full cache's (`changed` counts the methods); up to `changed` of them a setting,
    spread evenly, the mildest setting first. The lines are the full cache and then the methods,
    with their answers as they stand, changed or not. Empty where nothing changed, and without a
    full cache.
    """
    full = study.samples[stats.roles(study.samples).eq("full")].drop_duplicates("row")
    full = full.set_index("row", drop=False)
    cells = tables.compressed(study.cells).set_index("cell_key")
    rows = study.samples[study.samples["cell_key"].isin(cells.index)]
    rows = rows[rows["row"].isin(full.index) & ~stats.failed(rows)]
    rows = rows.assign(label=rows["cell_key"].map(cells["label"]))
    before = full["parsed"].fillna("")
    rows["changed"] = rows["parsed"].fillna("").ne(rows["row"].map(before)) & before.ne("").any()
    rows = rows.sort_values(["ratio", "budget", "row"], ascending=[True, False, True])
    found = [
        _flips_at(full, here, list(cells["label"].unique()), changed)
        for _, here in rows.groupby(["ratio", "budget"], sort=False, dropna=False)
        if here["changed"].any()
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _flips_at(
    full: pd.DataFrame, here: pd.DataFrame, labels: Sequence[str], most: int
) -> pd.DataFrame:
    counts = here.groupby("row")["changed"].sum()
    rows = _spread(list(counts.index[counts > 0]), most)
    said = here.pivot(index="row", columns="label", values="text").reindex(columns=labels)
    said.insert(0, "full cache", full["text"])
    known = full.loc[rows].assign(
        ratio=here["ratio"].iloc[0], budget=here["budget"].iloc[0], changed=counts[rows]
    )
    said = said.loc[rows].rename(columns=SAID.format)
    return pd.concat([_columns(known, FLIP_COLUMNS), said], axis=1)


def _columns(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """These columns in this order, null where the task has none; the image is put in later."""
    return frame.drop(columns=IMAGE, errors="ignore").reindex(columns=names)


def _spread(rows: Sequence[int], most: int) -> list[int]:
    """Up to `most` of the rows, evenly spread over them."""
    count = min(most, len(rows))
    picks = np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))
    return [int(rows[pick]) for pick in picks]
