"""The cells table and that of abilities: scores, intervals, flips, bytes.

Works on the samples frame alone (one row a cell and question row). It must not know of tensors, of
lmms-eval, of Hydra or of how the numbers are shown.
"""

from collections.abc import Hashable, Iterator
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
    heads,
    ordered,
    prepared,
    roles,
)
from harness.stats.intervals import accuracy_interval
from harness.stats.known import mean, total
from harness.stats.paired import paired
from harness.stats.pairing import against_full

MEASURED = [
    "window_effective", "adaptive_active", *TIMINGS, "score", "correct", "complete", "failed",
    "flip", "unparsed", "unparsed_other", "exposed_tokens", "evictable_tokens", "image_tokens",
    "kept_tokens", "kept_image", "kept_text", "cache_bytes", "full_cache_bytes",
    "truncated_tokens", "computed_share", *FETCHES,
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
    names = heads(frame[["cell", *CELL, "prefill", "group", "metric"]])
    cells = pd.concat([names, pd.DataFrame([*map(_cell, _parts(frame))])], axis=1)
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
    order = np.argsort(parts.ngroup(), kind="stable")
    ends = np.cumsum(table["n_rows"])[:-1]
    columns = (
        np.split(rows[name].to_numpy()[order], ends) for name in ("difference", "question_id")
    )
    differences = [_difference(*part) for part in zip(*columns, strict=True)]
    measured = pd.DataFrame(differences).where(roles(table).eq("method"))
    return pd.concat([table, measured], axis=1).assign(level=level)


def _difference(differences: np.ndarray, questions: np.ndarray) -> dict[str, float]:
    known = ~np.isnan(differences)
    found = paired(differences[known], questions[known])
    low, high = found.interval()
    return {"difference": found.difference, "difference_low": low, "difference_high": high}


def _parts(frame: pd.DataFrame) -> Iterator[dict[str, np.ndarray]]:
    """The `MEASURED` columns of each cell as arrays: a frame a cell takes far longer."""
    order = np.argsort(frame["cell"], kind="stable")
    ends = np.cumsum(np.bincount(frame["cell"]))[:-1]
    columns = {name: frame[name].to_numpy(dtype=float, na_value=np.nan) for name in MEASURED}
    columns["question"] = pd.factorize(frame["question_id"])[0]
    columns["fallback"] = frame["fallback"].notna().to_numpy()
    parts = [np.split(values[order], ends) for values in columns.values()]
    return (dict(zip(columns, part, strict=True)) for part in zip(*parts, strict=True))


def _cell(rows: dict[str, np.ndarray]) -> dict[Hashable, object]:
    questions = rows["question"]
    low, high = accuracy_interval(rows["score"], questions)
    scored = rows["failed"] == 0
    text = rows["evictable_tokens"] - rows["image_tokens"]
    return {
        "n_questions": len(np.unique(questions)),
        "n_rows": len(questions),
        "failed_rows": len(scored) - int(scored.sum()),
        "accuracy": rows["score"].mean(),
        "accuracy_low": low,
        "accuracy_high": high,
        "circular_accuracy": _circular(rows),
        "flip_rate": mean(rows["flip"]),
        "exposed_tokens": mean(rows["exposed_tokens"]),
        "kept_fraction": _share(rows["kept_tokens"], rows["evictable_tokens"]),
        "kept_fraction_image": _share(rows["kept_image"], rows["image_tokens"]),
        "kept_fraction_text": _share(rows["kept_text"], text),
        "cache_bytes": mean(rows["cache_bytes"]),
        "full_cache_bytes": mean(rows["full_cache_bytes"]),
        "unparsed_rate": mean(rows["unparsed"][scored]),
        "unparsed_rate_other": mean(rows["unparsed_other"][scored]),
        "truncated_rate": (rows["truncated_tokens"] > 0).mean(),
        "adaptive_active": mean(rows["adaptive_active"]),
        "fallback_rate": rows["fallback"].mean(),
        "window_effective": mean(rows["window_effective"]),
        "computed_share": mean(rows["computed_share"]),
        "host_bytes": mean(rows["host_bytes"]),
        "fetched_bytes": _ratio(total(rows["fetched_bytes"]), total(rows["passes"])),
        **{name: total(rows[name]) for name in TIMINGS},
    }


def _circular(rows: dict[str, np.ndarray]) -> float:
    """The share of whole questions that are right in every rotation; nan with unknown scores."""
    whole = rows["complete"] == 1
    if np.isnan(rows["score"]).any() or not whole.any():
        return float("nan")
    questions, wrong = rows["question"][whole], rows["correct"][whole] == 0
    asked = np.bincount(questions) > 0
    return float((np.bincount(questions, wrong)[asked] == 0).mean())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """Mean of part / whole over the rows that have any of it."""
    some = whole > 0
    return mean(part[some] / whole[some])
