"""The cells table and that of abilities: scores, intervals, flips, bytes.

Works on the samples frame alone (one row a cell and question row). It must not know of tensors, of
lmms-eval, of Hydra or of how the numbers are shown.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

from harness.stats.frame import (
    ABILITY_COLUMNS,
    CELL,
    CELL_COLUMNS,
    FETCHES,
    LEVELS,
    TIMINGS,
    complete,
    ordered,
    prepared,
    roles,
)
from harness.stats.intervals import accuracy_interval
from harness.stats.paired import paired
from harness.stats.pairing import against_full

NUMBERS = ["window_effective", "adaptive_active"]  # may be missing, and are no floats then
MEASURED = [
    *NUMBERS, *TIMINGS, "question_id", "score", "correct", "complete", "failed", "flip", "unparsed",
    "unparsed_other", "exposed_tokens", "evictable_tokens", "image_tokens", "kept_tokens",
    "kept_image", "kept_text", "cache_bytes", "full_cache_bytes", "truncated_tokens",
    "computed_share", *FETCHES,
]  # fmt: skip


@dataclass(frozen=True)
class Described:
    """Prepared samples beside the full cache's, and the cells table; `cell` joins the two."""

    frame: pd.DataFrame
    cells: pd.DataFrame


#: What the functions of this package take: samples, or what several of them need, made once.
Samples: TypeAlias = pd.DataFrame | Described


def summarise(samples: Samples) -> pd.DataFrame:
    """The cells table: a row a cell, columns `CELL_COLUMNS`.

    `accuracy` is the mean score in the task's `metric`; with scores of 0 and 1 the share of right
    rows. `unparsed_rate_other` is that of the second reading of the answers, nan where the task has
    none. Shares are fractions, times are seconds summed over the cell's rows, bytes and token
    counts are means over rows. `computed_share` is the share of the causal blocks that a sparse
    prefill computed, over its layers, and `search_s` the part of the full cache's `prefill_s` in
    which they were chosen; nan for dense ones. `host_bytes` lie on the host, beside `cache_bytes`
    on the device, and `fetched_bytes` come from there in a pass; nan where all is on the device. A
    question is right in the circular sense when every one of its rotations is; questions of which a
    cell lacks a rotation that other cells have are left out of that share. A flip is a parsed
    answer that differs from the full cache's on the same row (unparsed against unparsed is none);
    nan where the full cache has no parsed answer to compare with. `failed_rows` have no score, so
    that a cell with some has none of these.

    Order: as the (model, task, protocol) groups first appear; in each the full cache, the blank
    image, then methods by first appearance, ratios and budgets ascending.

    Raises:
        ValueError: no rows, a missing column, or a row that a cell holds twice.
    """
    return described(samples).cells[CELL_COLUMNS]


def described(samples: Samples) -> Described:
    """The samples ready for every other function; ValueError as in `summarise`."""
    if isinstance(samples, Described):
        return samples
    frame = against_full(prepared(samples))
    frame["complete"] = complete(frame)
    names = frame.drop_duplicates("cell")[
        ["cell", *CELL, "prefill", "group", "metric"]
    ].reset_index(drop=True)
    numbers = frame[MEASURED].astype(frame[NUMBERS].astype(float).dtypes)
    numbers["fallback"] = frame["fallback"].notna()
    measures = pd.DataFrame([_cell(rows) for _, rows in numbers.groupby(frame["cell"])])
    cells = pd.concat([names, measures], axis=1)
    cells["vacuous"] = roles(cells).eq("method") & cells["exposed_tokens"].eq(0)
    cells = cells.astype({"budget": "Int64", "group": "string"})
    return Described(frame, ordered(cells, frame))


def abilities(samples: Samples) -> pd.DataFrame:
    """Accuracy of every cell by kind of question: columns `ABILITY_COLUMNS`.

    `difference` is that of a method's cell from the full cache on the rows that both have, with
    the 95 % interval of Gaffke's test; nan in other rows and without a full cache.
    Levels are MMBench's `category` and `l2_category`; a task without them gives an empty table.
    Rows come in the order of `summarise`, then level, then ability by name.

    Raises:
        ValueError: as `summarise`.
    """
    frame = described(samples).frame
    parts = [
        _by_ability(frame, level)
        for level in LEVELS
        if level in frame and frame[level].notna().any()
    ]
    if not parts:
        return pd.DataFrame(columns=ABILITY_COLUMNS)
    table = pd.concat(parts, ignore_index=True)
    table["budget"] = table["budget"].astype("Int64")
    return ordered(table, frame)[ABILITY_COLUMNS]


def _by_ability(frame: pd.DataFrame, level: str) -> pd.DataFrame:
    rows = frame[frame[level].notna()].rename(columns={level: "ability"})
    parts = rows.groupby(["cell", "ability"])
    table = parts["score"].agg(n_rows="size", accuracy="mean", known="count").reset_index()
    table["accuracy"] = table["accuracy"].where(table["known"] == table["n_rows"])
    table = table.join(frame.drop_duplicates("cell").set_index("cell")[CELL], on="cell")
    differences = [_difference(part) for _, part in parts[["difference", "question_id"]]]
    measured = pd.DataFrame(differences).where(roles(table).eq("method"))
    return pd.concat([table, measured], axis=1).assign(level=level)


def _difference(rows: pd.DataFrame) -> dict[str, float]:
    differences, questions = rows["difference"].to_numpy(), rows["question_id"].to_numpy()
    known = ~np.isnan(differences)
    found = paired(differences[known], questions[known])
    low, high = found.interval()
    return {"difference": found.difference, "difference_low": low, "difference_high": high}


def _cell(rows: pd.DataFrame) -> dict[Hashable, object]:
    low, high = accuracy_interval(rows["score"], rows["question_id"])
    whole = rows[rows["complete"]]
    unknown = bool(rows["score"].isna().any())
    evictable = rows["evictable_tokens"]
    return {
        "n_questions": rows["question_id"].nunique(),
        "n_rows": len(rows),
        "failed_rows": int(rows["failed"].sum()),
        "accuracy": rows["score"].mean(skipna=False),
        "accuracy_low": low,
        "accuracy_high": high,
        "circular_accuracy": (
            float("nan") if unknown else whole.groupby("question_id")["correct"].all().mean()
        ),
        "flip_rate": rows["flip"].mean(),
        "exposed_tokens": float(rows["exposed_tokens"].mean()),
        "kept_fraction": _share(rows["kept_tokens"], evictable),
        "kept_fraction_image": _share(rows["kept_image"], rows["image_tokens"]),
        "kept_fraction_text": _share(rows["kept_text"], evictable - rows["image_tokens"]),
        "cache_bytes": rows["cache_bytes"].mean(),
        "full_cache_bytes": rows["full_cache_bytes"].mean(),
        "unparsed_rate": rows.loc[~rows["failed"], "unparsed"].mean(),
        "unparsed_rate_other": rows.loc[~rows["failed"], "unparsed_other"].mean(),
        "truncated_rate": (rows["truncated_tokens"] > 0).mean(),
        "adaptive_active": rows["adaptive_active"].mean(),
        "fallback_rate": rows["fallback"].mean(),
        "window_effective": rows["window_effective"].mean(),
        "computed_share": rows["computed_share"].mean(),
        "host_bytes": rows["host_bytes"].mean(),
        "fetched_bytes": rows["fetched_bytes"].sum(min_count=1) / rows["passes"].sum(min_count=1),
        **{name: rows[name].sum(min_count=1) for name in TIMINGS},
    }


def _share(part: pd.Series, whole: pd.Series) -> float:
    """Mean of part / whole over the rows that have any of it."""
    some = whole > 0
    return float((part[some] / whole[some]).mean())
