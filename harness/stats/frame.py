"""The samples frame: its columns, what each row of it is, and the order of what is made of it.

One row a cell and question row. Must not know of tensors, of lmms-eval, of Hydra or of how numbers
are shown.
"""

import json

import numpy as np
import pandas as pd

GROUP = ["model", "task", "protocol"]
CELL = [*GROUP, "method", "ratio", "budget", "control", "cell_key"]
STEPS = ["prefill_s", "score_s", "compact_s", "decode_s"]
TIMINGS = [*STEPS, "search_s"]
CELL_COLUMNS = [
    *GROUP, "prefill", "group", "metric", "method", "ratio", "budget", "control", "n_questions",
    "n_rows", "failed_rows", "accuracy", "accuracy_low", "accuracy_high", "circular_accuracy",
    "flip_rate",
    "exposed_tokens", "vacuous", "kept_fraction", "kept_fraction_image", "kept_fraction_text",
    "cache_bytes", "full_cache_bytes", "unparsed_rate", "unparsed_rate_other",
    "truncated_rate", "adaptive_active",
    "window_effective", "fallback_rate", "computed_share", "host_bytes", "fetched_bytes",
    "cell_key", *TIMINGS,
]  # fmt: skip
ABILITY_COLUMNS = [
    *GROUP, "method", "ratio", "budget", "control", "level", "ability", "n_rows", "accuracy",
    "difference", "difference_low", "difference_high", "cell_key",
]  # fmt: skip
LEVELS = ["category", "l2_category"]
ROTATION = 1_000_000  # MMBench: index = rotation * ROTATION + question
REQUIRED = [
    *CELL, *STEPS, "row", "parsed", "unparsed", "correct", "exposed_tokens", "image_tokens",
    "evictable_tokens", "kept_tokens", "kept_image", "kept_text", "cache_bytes",
    "full_cache_bytes", "window_effective", "adaptive_active", "fallback",
]  # fmt: skip


FETCHES = ["host_bytes", "fetched_bytes", "passes"]  # of caches that are partly on the host
USED = {
    *REQUIRED, *LEVELS, "index", "question_id", "score", "metric", "group", "truncated_tokens",
    "failed", "unparsed_other", "letter_logits", "prefill", "search_s", "computed_blocks",
    *FETCHES,
}  # fmt: skip


def roles(frame: pd.DataFrame) -> pd.Series:
    """What each row of a samples or cells frame is: "full", "blank" or "method"."""
    blank = frame["control"].to_numpy(dtype=object) == "blank_image"
    full = (frame["method"].to_numpy(dtype=object) == "full") & ~blank
    return pd.Series(np.select([full, blank], ["full", "blank"], "method"), index=frame.index)


def chosen(frame: pd.DataFrame, rows: pd.Series) -> pd.DataFrame:
    """The rows for which `rows` holds. Neighbours are a slice, which is far quicker to take."""
    places = np.flatnonzero(rows)
    first, end = (places[0], places[-1] + 1) if len(places) else (0, 0)
    return frame.iloc[first:end] if end - first == len(places) else frame[rows]


def of(frame: pd.DataFrame, key: tuple[str, str, str]) -> pd.DataFrame:
    """The rows of one model, task and protocol; an empty frame has no columns to choose by."""
    if frame.empty:
        return frame
    model, task, protocol = (frame[name].eq(value) for name, value in zip(GROUP, key, strict=True))
    return chosen(frame, model & task & protocol)


def prepared(samples: pd.DataFrame) -> pd.DataFrame:
    """A checked copy; `index` and `question_id` are filled in for tasks that have none.

    `cell` numbers the cells by first appearance.
    """
    missing = [name for name in REQUIRED if name not in samples]
    if missing:
        raise ValueError(f"the samples lack the columns {missing}; write them with the sweep")
    if samples.empty:
        raise ValueError("the samples hold no rows; run the sweep before reporting it")
    frame = samples[[name for name in samples if name in USED]].reset_index(drop=True)
    frame["cell"] = frame.groupby(CELL, sort=False, dropna=False).ngroup()
    twice = frame.duplicated(["cell", "row"])
    if twice.any():
        first = frame[twice].iloc[0]
        raise ValueError(
            f"row {first['row']} of cell {first['cell_key']} ({first['method']}) is there twice; "
            "give each cell and row once"
        )
    index = frame["index"] if "index" in frame else pd.Series(np.nan, index=frame.index)
    frame["index"] = index.fillna(frame["row"]).astype("int64")
    from_index = (frame["index"] % ROTATION).where(index.notna(), frame["row"])
    known = frame.get("question_id", from_index)
    frame["question_id"] = known.fillna(from_index)
    frame["correct"] = frame["correct"].astype(bool)
    frame["score"] = frame.get("score", frame["correct"]).astype(float)
    frame["metric"] = frame.get("metric", "accuracy")
    frame["group"] = frame.get("group", pd.Series(pd.NA, index=frame.index)).astype("string")
    frame["truncated_tokens"] = frame.get("truncated_tokens", 0)
    frame["failed"] = failed(frame)
    frame["score"] = frame["score"].mask(frame["failed"])
    frame["unparsed"] = frame["unparsed"].astype(bool)
    frame["prefill"] = frame.get("prefill", "dense")
    frame["search_s"] = frame.get("search_s", pd.Series(np.nan, index=frame.index)).astype(float)
    frame["computed_share"] = computed(frame).map(_mean, na_action="ignore").astype(float)
    for name in FETCHES:
        none = pd.Series(pd.NA, index=frame.index)
        frame[name] = frame.get(name, none).astype("Float64").astype("float64")
    second = frame.get("unparsed_other", pd.Series(pd.NA, index=frame.index))
    frame["unparsed_other"] = second.astype("boolean").astype("Float64").astype("float64")
    return frame


def heads(frame: pd.DataFrame) -> pd.DataFrame:
    """The first row of each cell of a prepared frame, in the order of their numbers."""
    return frame.iloc[np.unique(frame["cell"], return_index=True)[1]].reset_index(drop=True)


def group_numbers(frame: pd.DataFrame) -> np.ndarray:
    """The number of each row's group, by first appearance: int64 [rows]."""
    of_cell = heads(frame[["cell", *GROUP]]).groupby(GROUP, sort=False).ngroup().to_numpy()
    return of_cell[frame["cell"]]


def computed(samples: pd.DataFrame) -> pd.Series:
    """By layer, the share of the causal blocks that a sparse prefill computed; else null."""
    none = pd.Series(None, index=samples.index, dtype=object)
    given = samples.get("computed_blocks", none).astype(object)
    known = {text: json.loads(text) for text in given.dropna().unique()}
    return given.map(known, na_action="ignore").where(given.notna(), None)


def _mean(shares: dict[str, float]) -> float:
    return float(np.mean(list(shares.values())))


def failed(samples: pd.DataFrame) -> pd.Series:
    """Rows without a score because what chose their tokens was no numbers; earlier runs: none."""
    return samples.get("failed", pd.Series(False, index=samples.index)).astype(bool)


def complete(frame: pd.DataFrame) -> np.ndarray:
    """Whether the row's cell has every rotation of the question that any cell of its group has."""
    questions, kinds = pd.factorize(frame["question_id"])
    rows, numbers = pd.factorize(frame["row"])
    own = frame["cell"].to_numpy() * len(kinds) + questions
    asked = group_numbers(frame) * len(kinds) + questions
    known = np.unique(asked * len(numbers) + rows) // len(numbers)
    return np.bincount(own)[own] == np.bincount(known)[asked]


def ordered(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in the promised order, whatever order they came in."""
    first = {tuple(key): i for i, key in enumerate(frame[GROUP].drop_duplicates().to_numpy())}
    method = {name: i for i, name in enumerate(frame["method"].unique())}
    table = table.assign(
        _group=[first[tuple(key)] for key in table[GROUP].to_numpy()],
        _role=roles(table).map({"full": 0, "blank": 1, "method": 2}),
        _method=table["method"].map(method),
    )
    order = ["_group", "_role", "_method", "ratio", "budget", "cell_key"]
    order += [name for name in ("level", "ability") if name in table]
    return table.sort_values(order, kind="stable", na_position="last").reset_index(drop=True)
