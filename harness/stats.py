"""What the samples say in numbers: scores, intervals, flips, bytes, abilities.

Works on the samples frame alone (one row a cell and question row). It must not know of tensors, of
lmms-eval, of Hydra or of how the numbers are shown.
"""

from collections.abc import Hashable

import numpy as np
import pandas as pd
from scipy.stats import norm, t
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

GROUP = ["model", "task", "protocol"]
CELL = [*GROUP, "method", "ratio", "budget", "control", "cell_key"]
TIMINGS = ["prefill_s", "score_s", "compact_s", "decode_s"]
CELL_COLUMNS = [
    *GROUP, "group", "metric", "method", "ratio", "budget", "control", "n_questions", "n_rows",
    "accuracy", "accuracy_low", "accuracy_high", "circular_accuracy", "flip_rate",
    "exposed_tokens", "vacuous", "kept_fraction", "kept_fraction_image", "kept_fraction_text",
    "cache_bytes", "full_cache_bytes", "unparsed_rate", "truncated_rate", "adaptive_active",
    "window_effective", "fallback_rate", "cell_key", *TIMINGS,
]  # fmt: skip
ABILITY_COLUMNS = [
    *GROUP, "method", "ratio", "budget", "control", "level", "ability", "n_rows", "accuracy",
    "cell_key",
]  # fmt: skip
LEVELS = ["category", "l2_category"]
ROTATION = 1_000_000  # MMBench: index = rotation * ROTATION + question
REQUIRED = [
    *CELL, *TIMINGS, "row", "parsed", "unparsed", "correct", "exposed_tokens", "image_tokens",
    "evictable_tokens", "kept_tokens", "kept_image", "kept_text", "cache_bytes",
    "full_cache_bytes", "window_effective", "adaptive_active", "fallback",
]  # fmt: skip


def accuracy_interval(
    scores: pd.Series, cluster: pd.Series, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a mean score in [0, 1] when the rows of one question are not independent.

    A Wilson interval at the effective sample size: the cluster-robust variance V of the mean
    (statsmodels, clusters = questions, factor C / (C - 1)) gives n = p (1 - p) / V, for scores of
    0 and 1 at most the number of rows, reduced by (z / t with C - 1 degrees of freedom)^2 because
    V itself is an estimate from C questions (Korn and Graubard 1998, with Wilson's form in place of
    Clopper-Pearson's). Wilson and not Wald, because Wald collapses to a point at 0 and 1 and leaves
    [0, 1] near them.

    Where V says nothing (all scores the same, a single question) n is the number of
    questions, as if the rows of a question always fell together: wide rather than too narrow, so
    that a perfect score can have a lower end below that of a score with one slip.

    Args:
        scores: right and wrong as 1 and 0, or graded, one a row.
        cluster: the question of each row, same length.
        confidence: coverage aimed at.

    Returns:
        (low, high) as fractions in [0, 1] around the mean; (nan, nan) without rows, and where some
        score is not known.
    """
    values = np.asarray(scores, dtype=float)
    if values.size == 0 or np.isnan(values).any():
        return float("nan"), float("nan")
    questions = pd.factorize(np.asarray(cluster))[0]
    size = _effective_size(values, questions, confidence)
    low, high = proportion_confint(values.mean() * size, size, 1 - confidence, method="wilson")
    # Wilson's ends at 0 and 1 are exact in theory and off by an ulp in floating point.
    return min(max(0.0, float(low)), values.mean()), max(min(1.0, float(high)), values.mean())


def _effective_size(values: np.ndarray, questions: np.ndarray, confidence: float) -> float:
    share, count = values.mean(), int(questions.max()) + 1
    if np.ptp(values) == 0 or count == 1:
        return float(count)
    fit = OLS(values, np.ones(values.size)).fit(cov_type="cluster", cov_kwds={"groups": questions})
    variance = float(fit.bse[0]) ** 2
    # Graded scores spread less than 0 and 1 with the same mean: their rows can count for more.
    graded = bool(((values > 0) & (values < 1)).any())
    least = 1e-12 if graded else share * (1 - share) / values.size
    rows = share * (1 - share) / max(variance, least)
    tail = 0.5 + confidence / 2
    return float(rows * (norm.ppf(tail) / t.ppf(tail, count - 1)) ** 2)


def roles(frame: pd.DataFrame) -> pd.Series:
    """What each row of a samples or cells frame is: "full", "blank" or "method"."""
    blank = frame["control"].eq("blank_image")
    full = frame["method"].eq("full") & ~blank
    return pd.Series(np.select([full, blank], ["full", "blank"], "method"), index=frame.index)


def summarise(samples: pd.DataFrame) -> pd.DataFrame:
    """The cells table: a row a cell, columns `CELL_COLUMNS`.

    `accuracy` is the mean score in the task's `metric`; with scores of 0 and 1 the share of right
    rows. Shares are fractions, times are seconds summed over the cell's rows, bytes and token
    counts are means over rows. A question is right in the circular sense when every one of its
    rotations is; questions of which a cell lacks a rotation that other cells have are left out of
    that share. A flip is a parsed answer that differs from the full cache's on the same row
    (unparsed against unparsed is none); nan where the full cache has no parsed answer to compare
    with.

    Order: as the (model, task, protocol) groups first appear; in each the full cache, the blank
    image, then methods by first appearance, ratios and budgets ascending.

    Raises:
        ValueError: no rows, a missing column, or a row that a cell holds twice.
    """
    frame = _prepared(samples)
    frame["flip"] = _flips(frame)
    frame["complete"] = _complete(frame)
    keys = frame.groupby(CELL, sort=False, dropna=False)
    cells = pd.DataFrame([_cell(rows) for _, rows in keys])
    cells = cells.astype({"budget": "Int64", "group": "string"})
    return _ordered(cells, frame)[CELL_COLUMNS]


def abilities(samples: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of every cell by kind of question: columns `ABILITY_COLUMNS`.

    Levels are MMBench's `category` and `l2_category`; a task without them gives an empty table.
    Rows come in the order of `summarise`, then level, then ability by name.

    Raises:
        ValueError: as `summarise`.
    """
    frame = _prepared(samples)
    parts = [
        _by_ability(frame, level)
        for level in LEVELS
        if level in frame and frame[level].notna().any()
    ]
    if not parts:
        return pd.DataFrame(columns=ABILITY_COLUMNS)
    table = pd.concat(parts, ignore_index=True)
    table["budget"] = table["budget"].astype("Int64")
    return _ordered(table, frame)[ABILITY_COLUMNS]


def means(cells: pd.DataFrame) -> pd.DataFrame:
    """The mean of every group of tasks: a row a (model, group, protocol) and cell.

    Columns as `cells`, with the group's name under `task`, `n_tasks`, and the counts and seconds
    added up. Every task counts alike. The interval takes the tasks as independent: half its width
    is the root of the sum of their squared half widths, over the number of tasks.

    Args:
        cells: `summarise(samples)`.
    """
    rows = cells[cells["group"].notna()]
    if rows.empty:
        return pd.DataFrame(columns=[*CELL_COLUMNS, "n_tasks"])
    keys = ["model", "group", "protocol", "method", "ratio", "budget", "control"]
    parts = rows.groupby(keys, sort=False, dropna=False)
    table = pd.DataFrame([_mean(part) for _, part in parts]).reset_index(drop=True)
    whole = {"n_questions": "int64", "n_rows": "int64", "n_tasks": "int64", "budget": "Int64"}
    return table.astype(whole)


def _mean(rows: pd.DataFrame) -> pd.Series:
    numbers = rows.select_dtypes("number").columns.difference(["ratio", "budget"])
    first = rows.iloc[0].copy()
    first[numbers] = rows[numbers].mean()
    added = ["n_questions", "n_rows", *TIMINGS]
    first[added] = rows[added].sum()
    half = (rows["accuracy_high"] - rows["accuracy_low"]) / 2
    spread = float(np.sqrt((half**2).sum()) / len(rows))
    first["accuracy_low"] = max(0.0, first["accuracy"] - spread)
    first["accuracy_high"] = min(1.0, first["accuracy"] + spread)
    first["vacuous"] = bool(rows["vacuous"].any())
    metrics = rows["metric"].unique()
    first["metric"] = metrics[0] if len(metrics) == 1 else "mean score"
    first["task"], first["n_tasks"] = first["group"], len(rows)
    return first


def _by_ability(frame: pd.DataFrame, level: str) -> pd.DataFrame:
    rows = frame[frame[level].notna()].rename(columns={level: "ability"})
    table = rows.groupby([*CELL, "ability"], dropna=False)["score"].agg(["size", "mean"])
    table = table.rename(columns={"size": "n_rows", "mean": "accuracy"}).reset_index()
    return table.assign(level=level)


def _prepared(samples: pd.DataFrame) -> pd.DataFrame:
    """A checked copy with `index` and `question_id` filled in for tasks that have none."""
    missing = [name for name in REQUIRED if name not in samples]
    if missing:
        raise ValueError(f"the samples lack the columns {missing}; write them with the sweep")
    if samples.empty:
        raise ValueError("the samples hold no rows; run the sweep before reporting it")
    frame = samples.reset_index(drop=True).copy()
    twice = frame.duplicated([*CELL, "row"])
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
    frame["unparsed"] = frame["unparsed"].astype(bool)
    return frame


def _flips(frame: pd.DataFrame) -> pd.Series:
    """1.0 where the parsed answer differs from the full cache's, 0.0 where not, nan unknown."""
    place = [*GROUP, "row"]
    answers = frame[[*place, "parsed"]].assign(parsed=frame["parsed"].fillna("").astype(str))
    full = answers[roles(frame).eq("full")].drop_duplicates(place)
    judged = full[full.groupby(GROUP)["parsed"].transform("any").astype(bool)]
    both = answers.merge(judged, on=place, how="left", suffixes=("", "_full"))
    flips = both["parsed"].ne(both["parsed_full"]).astype(float)
    return flips.where(both["parsed_full"].notna()).set_axis(frame.index)


def _complete(frame: pd.DataFrame) -> pd.Series:
    """Whether the row's cell has every rotation of the question that any cell of its group has."""
    own = frame.groupby([*CELL, "question_id"], dropna=False)["row"].transform("nunique")
    known = frame.groupby([*GROUP, "question_id"])["row"].transform("nunique")
    return own.eq(known)


def _cell(rows: pd.DataFrame) -> dict[Hashable, object]:
    low, high = accuracy_interval(rows["score"], rows["question_id"])
    whole = rows[rows["complete"]]
    secret = bool(rows["score"].isna().any())
    exposed = float(rows["exposed_tokens"].mean())
    evictable = rows["evictable_tokens"]
    return {
        **rows.iloc[0][[*CELL, "group", "metric"]],
        "n_questions": rows["question_id"].nunique(),
        "n_rows": len(rows),
        "accuracy": rows["score"].mean(skipna=False),
        "accuracy_low": low,
        "accuracy_high": high,
        "circular_accuracy": (
            float("nan") if secret else whole.groupby("question_id")["correct"].all().mean()
        ),
        "flip_rate": rows["flip"].mean(),
        "exposed_tokens": exposed,
        "vacuous": roles(rows.head(1)).item() == "method" and exposed == 0,
        "kept_fraction": _share(rows["kept_tokens"], evictable),
        "kept_fraction_image": _share(rows["kept_image"], rows["image_tokens"]),
        "kept_fraction_text": _share(rows["kept_text"], evictable - rows["image_tokens"]),
        "cache_bytes": rows["cache_bytes"].mean(),
        "full_cache_bytes": rows["full_cache_bytes"].mean(),
        "unparsed_rate": rows["unparsed"].mean(),
        "truncated_rate": (rows["truncated_tokens"] > 0).mean(),
        "adaptive_active": rows["adaptive_active"].astype(float).mean(),
        "fallback_rate": rows["fallback"].notna().mean(),
        "window_effective": rows["window_effective"].astype(float).mean(),
        **{name: rows[name].sum() for name in TIMINGS},
    }


def _share(part: pd.Series, whole: pd.Series) -> float:
    """Mean of part / whole over the rows that have any of it."""
    some = whole > 0
    return float((part[some] / whole[some]).mean())


def _ordered(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
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
