"""The mean of every group of tasks, of the cells table.

Must not know the samples.
"""

import numpy as np
import pandas as pd

from harness.stats.frame import CELL_COLUMNS, TIMINGS

SCORES = ["accuracy", "circular_accuracy", "flip_rate"]


def means(cells: pd.DataFrame) -> pd.DataFrame:
    """The mean of every group of tasks: a row a (model, group, protocol) and cell.

    Columns as `cells`, with the group's name under `task`, `n_tasks`, and the counts and seconds
    added up. Every task counts alike; one with failed rows leaves its group without a score. The
    interval takes the tasks as independent: half its width is the root of the sum of their squared
    half widths, over the number of tasks.

    Args:
        cells: `summarise(samples)`.
    """
    rows = cells[cells["group"].notna()]
    if rows.empty:
        return pd.DataFrame(columns=[*CELL_COLUMNS, "n_tasks"])
    keys = ["model", "group", "protocol", "method", "ratio", "budget", "control"]
    parts = rows.groupby(keys, sort=False, dropna=False)
    table = pd.DataFrame([_mean(part) for _, part in parts]).reset_index(drop=True)
    whole = dict.fromkeys(["n_questions", "n_rows", "failed_rows", "n_tasks"], "int64")
    whole["budget"] = "Int64"
    return table.astype(whole)


def _mean(rows: pd.DataFrame) -> pd.Series:
    numbers = rows.select_dtypes("number").columns.difference(["ratio", "budget"])
    first = rows.iloc[0].copy()
    first[numbers] = rows[numbers].mean()
    if rows["failed_rows"].any():
        first[SCORES] = np.nan
    added = ["n_questions", "n_rows", "failed_rows", *rows.columns.intersection(TIMINGS)]
    first[added] = rows[added].sum()
    half = (rows["accuracy_high"] - rows["accuracy_low"]) / 2
    spread = float(np.sqrt((half**2).sum()) / len(rows))
    first["accuracy_low"] = np.maximum(0.0, first["accuracy"] - spread)  # keeps a nan
    first["accuracy_high"] = np.minimum(1.0, first["accuracy"] + spread)
    first["vacuous"] = bool(rows["vacuous"].any())
    metrics = rows["metric"].unique()
    first["metric"] = metrics[0] if len(metrics) == 1 else "mean score"
    first["task"], first["n_tasks"] = first["group"], len(rows)
    return first
