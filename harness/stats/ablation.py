"""What each part of the smoothing is worth: contrasts of cells that are alike in all else.

Works on the samples frame alone. It must not know of tensors, of lmms-eval, of Hydra or of how the
numbers are shown.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import pandas as pd

from harness.stats.cells import Samples, described
from harness.stats.comparisons import holm
from harness.stats.contrasts import ADAPTIVE_PART, LEVELS, Contrast, Kind, contrasts
from harness.stats.frame import GROUP, roles
from harness.stats.paired import paired
from harness.stats.pairing import known_scores, questions_of, wide
from harness.stats.plan import Plan
from harness.stats.resampling import ratio_intervals

ABLATION_COLUMNS = [
    *GROUP, "ratio", "budget", "effect", "contrast", "given", "n_questions", "difference", "low",
    "high", "bootstrap_low", "bootstrap_high", "p", "p_holm", "adaptive_active", "inert", "evicted",
]  # fmt: skip
NUMBERS = [
    "ratio", "difference", "low", "high", "bootstrap_low", "bootstrap_high", "p", "p_holm",
    "adaptive_active", "evicted",
]  # fmt: skip
TYPES = {"budget": "Int64", "n_questions": "int64", "inert": "bool"}
TYPES |= dict.fromkeys(NUMBERS, "float64")


def ablate(samples: Samples, factors: Mapping[str, Mapping[str, str]], plan: Plan) -> pd.DataFrame:
    """The ablation table: a row a setting and contrast, columns `ABLATION_COLUMNS`.

    Every contrast is over the rows that all its cells have. effect: "temporal" and "spatial" for
    one factor at one level of the other (`given`) and in the mean of those levels of the other
    that have both cells, "interaction" for what the one changes in the effect of the other,
    "smoothing" for both together against neither. difference, low, high, p: mean score and Gaffke's
    test of it (95 %; against 0, two-sided); bootstrap_: cluster bootstrap (BCa, 95 %).
    p_holm: Holm's adjustment over the smoothing rows of a group that evict more than `plan.above`,
    nan elsewhere. adaptive_active: share of heads whose window was not the fixed pool, mean over
    the cells that have such a window. inert: the contrast is about that window, which was never
    active. evicted: 1 - kept_fraction, mean over the cells.

    Where two cells stand under one label and setting, answers are secret or rows failed, the
    numbers are nan.
    Order: groups as they appear, ratios and budgets ascending.

    Args:
        samples: a row a cell and question row.
        factors: label to {"temporal": "ema" or "mean", "spatial": "none", "avg", "adaptive" or
            "relative"}, for labels that are alike in all else; others of the samples are left out.
        plan: level and resamples.

    Raises:
        ValueError: a level that is none of these, two labels of the same levels, or as `summarise`.
    """
    return contrasted(samples, _kinds(factors), contrasts, plan, {"smoothing"})


def pairs(samples: Samples, plan: Plan) -> pd.DataFrame:
    """What the first label of each of the plan's pairs scores beside the second, as in `ablate`.

    effect: `Pair.called`. contrast: "label - against". p_holm: Holm's adjustment over all of them
    in a group that evict more than `plan.above`.

    Returns:
        A row a setting and pair of which both cells are there; columns `ABLATION_COLUMNS`, `label`
        and `against`.
    """
    asked = {f"{pair.label} - {pair.against}": pair for pair in plan.contrasts}

    def there(labels: set[Hashable]) -> Iterator[Contrast]:
        for name, pair in asked.items():
            if {pair.label, pair.against} <= labels:
                yield Contrast(
                    pair.called, name, "", {pair.label: 1.0, pair.against: -1.0}, pair=True
                )

    labels = {label: label for pair in plan.contrasts for label in (pair.label, pair.against)}
    table = contrasted(samples, labels, there, plan, {pair.called for pair in plan.contrasts})
    ends = [table["contrast"].map({name: getattr(pair, end) for name, pair in asked.items()})
            for end in ("label", "against")]  # fmt: skip
    return table.assign(label=ends[0], against=ends[1])


def contrasted(
    samples: Samples,
    kinds: Mapping[str, Hashable],
    chosen: Callable[[set[Any]], Iterator[Contrast]],
    plan: Plan,
    family: Set[str],
) -> pd.DataFrame:
    """The rows of `ablate` for contrasts of any kind.

    Args:
        samples: a row a cell and question row.
        kinds: label to what the contrasts weigh; other labels are left out.
        chosen: the contrasts of the kinds that a setting has.
        plan: level and resamples.
        family: effects whose p values are adjusted for being several.
    """
    known = described(samples)
    frame, cells = known.frame, known.cells
    frame = frame[["cell", "row", "question_id"]].assign(score=known_scores(frame))
    cells = cells[roles(cells).eq("method") & cells["method"].isin(kinds)]
    cells = cells.assign(kind=cells["method"].map(kinds))
    parts = [
        _group(frame[frame["cell"].isin(part["cell"])], part, chosen, plan, family)
        for _, part in cells.groupby(GROUP, sort=False)
    ]
    table = pd.concat([pd.DataFrame(columns=ABLATION_COLUMNS), *parts], ignore_index=True)
    return table[ABLATION_COLUMNS].astype(TYPES)


def _group(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    chosen: Callable[[set[Any]], Iterator[Contrast]],
    plan: Plan,
    family: Set[str],
) -> pd.DataFrame:
    """The contrasts of one model, task and protocol."""
    questions = questions_of(frame)
    rows, differences = [], []
    order = cells.sort_values(["ratio", "budget"], kind="stable", na_position="last")
    for _, setting in order.groupby(["ratio", "budget"], sort=False, dropna=False):
        scores = dict(zip(setting["cell"], wide(frame, "score", setting["cell"]), strict=True))
        for one in chosen(set(setting["kind"])):
            part = setting[setting["kind"].isin(one.weights)]
            weights = part["kind"].map(one.weights)
            values = sum(w * scores[n] for w, n in zip(weights, part["cell"], strict=True))
            if part["kind"].duplicated().any():
                values = np.full(len(questions), np.nan)
            rows.append(_row(one, part, values, questions))
            differences.append(values)
    table = pd.DataFrame(rows, columns=ABLATION_COLUMNS)
    if rows:
        matrix = np.array(differences)
        limits = ratio_intervals(matrix, np.ones_like(matrix), questions, plan.resamples, plan.seed)
        table[["bootstrap_low", "bootstrap_high"]] = limits
        planned = table["effect"].isin(family) & (table["evicted"] > plan.above)
        table["p_holm"] = holm(table["p"], planned)
    return table


def _row(
    one: Contrast, cells: pd.DataFrame, values: np.ndarray, questions: np.ndarray
) -> dict[str, object]:
    known = ~np.isnan(values)
    found = paired(values[known], questions[known], one.bound)
    low, high = found.interval()
    active = cells["adaptive_active"].dropna()
    return {
        **cells.iloc[0][[*GROUP, "ratio", "budget"]],
        "effect": one.effect,
        "contrast": one.contrast,
        "given": one.given,
        "n_questions": found.questions,
        "difference": found.difference,
        "low": low,
        "high": high,
        "p": found.p_equal(),
        "adaptive_active": active.mean(),
        "inert": one.contrast in ADAPTIVE_PART and len(active) > 0 and bool((active == 0).all()),
        "evicted": 1 - _first(one, cells)["kept_fraction"].mean(),
    }


def _first(one: Contrast, cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that tell how much a contrast evicts: a pair's first one, else all."""
    first = cells[cells["kind"].map(one.weights) > 0]
    return first if one.pair else cells


def _kinds(factors: Mapping[str, Mapping[str, str]]) -> dict[str, Kind]:
    kinds = {label: (levels["temporal"], levels["spatial"]) for label, levels in factors.items()}
    for label, (temporal, spatial) in kinds.items():
        if temporal not in LEVELS["temporal"] or spatial not in LEVELS["spatial"]:
            raise ValueError(
                f"{label} has temporal={temporal} and spatial={spatial}; leave it out, or give it "
                f"levels of {LEVELS}"
            )
        same = [other for other, kind in kinds.items() if kind == (temporal, spatial)]
        if len(same) > 1:
            raise ValueError(f"{' and '.join(same)} have the same levels; give one of them")
    return kinds
