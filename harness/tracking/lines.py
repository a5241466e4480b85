"""The lines of one group: a step a ratio or budget, a value a method.

Turns frames into plain numbers; must not know wandb.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from harness.report import tables
from harness.report.study import Study
from harness.tracking import keys


def steps(study: Study) -> Iterator[dict[str, float]]:
    """The history of one (model, task, protocol) group, ratios and then budgets ascending.

    Each step holds its ratio (or budget) and, as fractions: of every cell there
    `accuracy/<method>` with `accuracy_low/` and `accuracy_high/` (95 %), and the paired difference
    from the full cache `difference/<method>` with its interval; of the ablation's contrasts, the
    interactions left out, `ablation/<contrast>` with theirs; `reference/full_cache` and
    `reference/blank_image`, the same at every step: level lines.

    A vacuous cell repeats the full cache whatever its method does, so it has nothing but
    `vacuous/<method>`, and no contrast is shown beside one; a contrast about an adaptive window
    that was never active has no point. What is not known (nan) is left out.
    """
    cells = tables.compressed(study.cells)
    names = keys.names(cells["label"].unique())
    cells = cells.assign(name=cells["label"].map(names))
    for axis in keys.AXES:
        places = cells[axis] if axis == keys.RATIO else cells[axis].where(cells["ratio"].isna())
        for value in sorted(places.dropna().unique()):
            here = cells[places.eq(value).fillna(False)]
            step = {
                **_references(study.cells, axis),
                **_scores(here, axis),
                **_differences(here, study.comparisons, axis),
                **({} if here["vacuous"].any() else _effects(study.ablation, axis, value)),
            }
            finite = {key: number for key, number in step.items() if math.isfinite(number)}
            yield {axis: value.item(), **finite}


def _references(cells: pd.DataFrame, axis: str) -> dict[str, float]:
    return {
        keys.metric(keys.REFERENCE, keys.REFERENCES[cell["label"]], axis): float(cell["accuracy"])
        for _, cell in tables.references(cells).iterrows()
    }


def _scores(cells: pd.DataFrame, axis: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for _, cell in cells.iterrows():
        if cell["vacuous"]:
            found[keys.metric(keys.VACUOUS, cell["name"], axis)] = float(cell["accuracy"])
        else:
            found |= _line(cell, keys.ACCURACY, keys.ACCURACY, cell["name"], axis)
    return found


def _differences(cells: pd.DataFrame, comparisons: pd.DataFrame, axis: str) -> dict[str, float]:
    if comparisons.empty:
        return {}
    names = cells[~cells["vacuous"].astype(bool)].set_index("cell_key")["name"]
    found: dict[str, float] = {}
    for _, row in comparisons[comparisons["cell_key"].isin(names.index)].iterrows():
        found |= _line(row, keys.DIFFERENCE, keys.DIFFERENCE, names[row["cell_key"]], axis)
    return found


def _effects(ablation: pd.DataFrame, axis: str, value: float) -> dict[str, float]:
    """One number a contrast: the mean over the other factor where that has several levels."""
    if ablation.empty:
        return {}
    here = ablation[ablation[axis].eq(value).fillna(False)]
    here = here[here["effect"].ne("interaction")]
    alone = ~here.duplicated(["effect", "contrast"], keep=False)
    mean = here["given"].str.startswith("mean of", na=False)
    found: dict[str, float] = {}
    for _, row in here[(alone | mean) & ~here["inert"].astype(bool)].iterrows():
        name = keys.contrast(row["contrast"])
        found |= _line(row, ("difference", "low", "high"), keys.ABLATION, name, axis)
    return found


def _line(
    row: Mapping[str, float], columns: Sequence[str], kinds: Sequence[str], name: str, axis: str
) -> dict[str, float]:
    """A value with the two ends of its interval."""
    return {
        keys.metric(kind, name, axis): float(row[column])
        for kind, column in zip(kinds, columns, strict=True)
    }
