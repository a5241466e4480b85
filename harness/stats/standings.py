"""How the methods of a task stand to each other: a mean over cells, and its distance from the best.

Works on the samples frame alone. It must not know of tensors, of lmms-eval, of Hydra or of how the
numbers are shown.
"""

from collections.abc import Hashable

import numpy as np
import pandas as pd

from harness.stats.cells import Samples, described
from harness.stats.frame import GROUP, roles
from harness.stats.intervals import accuracy_interval
from harness.stats.paired import paired
from harness.stats.plan import Plan

PLACE = ["protocol", "ratio", "budget"]
MORE = 0.01  # of the prompt; less than that beyond what was asked is rounding
STANDING_COLUMNS = [
    "model", "task", "method", "mean", "mean_low", "mean_high", "difference", "difference_low",
    "difference_high", "told_apart", "keeps_more", "n_places", "n_rows", "beyond",
]  # fmt: skip


def standings(samples: Samples, plan: Plan) -> pd.DataFrame:
    """A row a model, task and method, the best mean first; columns `STANDING_COLUMNS`.

    mean: of the score over the cells that count, every protocol and amount alike, on the rows that
    all these cells have; with a 95 % interval over questions. Cells count that evict more than
    `plan.above` (beyond), or all cells where none does; those of a place at which every method is
    vacuous do not. keeps_more: whether one of these cells keeps more than was asked (`keeps_more`);
    such a method is not the best. difference: from the best method on the same rows, with the 95 %
    interval of Gaffke's test (`Paired`); nan where there is no best. told_apart: whether that
    interval is below 0; pairs are not corrected for their number. n_places: cells of each method
    that count.

    A method has no mean, and comes last, where a cell that counts is missing, vacuous or with
    failed rows, or is there twice. Fractions throughout.

    Raises:
        ValueError: as `summarise`.
    """
    known = described(samples)
    cells = known.cells[roles(known.cells).eq("method")]
    parts = [_standing(known.frame, own, plan.above) for _, own in _tasks(cells)]
    if not parts:
        return pd.DataFrame(columns=STANDING_COLUMNS)
    return pd.concat(parts, ignore_index=True)[STANDING_COLUMNS]


def _tasks(cells: pd.DataFrame) -> list[tuple[Hashable, pd.DataFrame]]:
    return list(cells.groupby(["model", "task"], sort=False))


def evicted(cells: pd.DataFrame) -> pd.Series:
    """The share of the prompt that each cell was asked to evict; measured for absolute budgets."""
    kept = cells.groupby("budget")["kept_fraction"].transform("mean").astype(float)
    return cells["ratio"].astype(float).fillna(1 - kept)


def keeps_more(cells: pd.DataFrame) -> pd.Series:
    """Whether each cell keeps more of the prompt than was asked, by more than a point (`MORE`).

    Asked for is the share that the ratio leaves, but no less than the least that any cell of the
    same task, protocol and amount keeps: rounding to whole tokens leaves more to all of them.

    Args:
        cells: of methods alone, as `summarise` gives them.
    """
    places = cells.groupby([*GROUP, "ratio", "budget"], dropna=False)
    least = places["kept_fraction"].transform("min").astype(float)
    asked = (1 - cells["ratio"].astype(float)).fillna(0)
    return cells["kept_fraction"] > np.maximum(asked, least) + MORE


def _standing(frame: pd.DataFrame, cells: pd.DataFrame, above: float) -> pd.DataFrame:
    """One model and task; cells: of its methods alone."""
    counted, beyond = _counted(cells, above)
    scores, questions = _scores(frame, counted)
    greedy = set(counted.loc[keeps_more(counted), "method"])
    fair = [str(name) for name in scores if name not in greedy]
    best = None if scores.empty or not fair else str(scores[fair].mean().idxmax())
    found = {str(name): _numbers(scores, str(name), best, questions) for name in scores}
    places = len(counted.drop_duplicates(PLACE))
    first = cells.iloc[0]
    rows = [
        {"model": first["model"], "task": first["task"], "method": name, "told_apart": False}
        | found.get(name, {})
        | {"keeps_more": name in greedy}
        | {"n_places": places, "n_rows": len(scores), "beyond": beyond}
        for name in cells["method"].unique()
    ]
    table = pd.DataFrame(rows).reindex(columns=STANDING_COLUMNS)
    return table.sort_values("mean", ascending=False, kind="stable", na_position="last")


def _counted(cells: pd.DataFrame, above: float) -> tuple[pd.DataFrame, bool]:
    """The cells that count, and whether these are only those that evict more than `above`."""
    empty = cells.groupby(PLACE, dropna=False)["vacuous"].transform("all")
    real = cells[~empty.astype(bool)]
    strong = real[evicted(real) > above + 1e-9]
    return (real, False) if strong.empty else (strong, True)


def _scores(frame: pd.DataFrame, counted: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Each row's mean score over a method's cells, a column a method, and the row's question."""
    places = len(counted.drop_duplicates(PLACE))
    frame = frame[frame["cell"].isin(counted["cell"])]
    columns: dict[str, pd.Series] = {}
    for name, own in counted.groupby("method", sort=False):
        known = own["accuracy"].notna().all() and not own["vacuous"].any()
        if known and len(own) == places == len(own.drop_duplicates(PLACE)):
            rows = frame[frame["cell"].isin(own["cell"])]
            wide = rows.pivot(index="row", columns="cell", values="score")
            columns[str(name)] = wide.mean(axis=1, skipna=False)
    scores = pd.DataFrame(columns).dropna()
    question = frame.drop_duplicates("row").set_index("row")["question_id"]
    return scores, question.reindex(scores.index).to_numpy()


def _numbers(
    scores: pd.DataFrame, name: str, best: str | None, questions: np.ndarray
) -> dict[str, object]:
    """A method's mean, and its distance from the best one's."""
    if scores.empty:
        return {}
    low, high = accuracy_interval(scores[name], pd.Series(questions))
    mean = {"mean": scores[name].mean(), "mean_low": low, "mean_high": high}
    if best is None:
        return mean
    gap = paired((scores[name] - scores[best]).to_numpy(), questions)
    below, beyond = gap.interval()
    return {
        **mean,
        "difference": gap.difference,
        "difference_low": below,
        "difference_high": beyond,
        "told_apart": beyond < 0,
    }
