"""What a sparse prefill computed and what it costs, beside a dense one, as rows of text.

Knows the cells and samples of a study and how numbers look; must not know Markdown or HTML.
"""

from collections.abc import Iterator, Mapping

import pandas as pd

from harness import stats
from harness.report import tables
from harness.report.protocols import filled, when
from harness.report.study import Study
from harness.report.tables import percent
from harness.report.verdict_tables import Rows

DENSE = "dense"


def of(study: Study) -> Iterator[Rows]:
    """For every model, task and protocol that was read sparsely: the scores of each prefill, and
    the share of the blocks that each layer computed.
    """
    places = [study.cells["model"], study.cells["task"], study.cells["protocol"].map(when)]
    for (model, task, protocol), part in study.cells.groupby(places, sort=False):
        ways = list(dict.fromkeys(part["prefill"]))
        if ways == [DENSE]:
            continue
        name = f"{tables.short(str(model))} on {task} ({protocol})"
        yield _scores(name, part, ways)
        own = study.samples["cell_key"].isin(part["cell_key"])
        yield _layers(name, study.samples[own & stats.roles(study.samples).eq("full")])


def _scores(name: str, cells: pd.DataFrame, ways: list[str]) -> Rows:
    """A line for the full cache and for each method and setting, a column for each prefill."""
    lines: dict[tuple[str, str], list[str]] = {}
    for number, way in enumerate(ways):
        own = cells[cells["prefill"] == way]
        full = tables.references(own)
        rows = pd.concat([full[full["label"] == tables.REFERENCES["full"]], tables.compressed(own)])
        for _, cell in rows.iterrows():
            evicted = "" if cell["method"] == "full" else tables.setting(cell)
            line = lines.setdefault((cell["label"], evicted), [""] * len(ways))
            line[number] = percent(cell["accuracy"]) + tables.marks(cell)
    body = [[*place, *filled(scores)] for place, scores in lines.items()]
    fulls = cells[stats.roles(cells).eq("full")]
    notes = [_said(cell) for _, cell in fulls.iterrows() if cell["prefill"] != DENSE]
    return Rows(
        f"{name}: scores in % by how the prompt is read",
        ["Method", "Evicted", *ways],
        body,
        notes,
    )


def _said(cell: pd.Series) -> str:
    """What a prefill computed, and the time in which it chose."""
    said = f"{cell['prefill']} computes {percent(cell['computed_share'])} % of the causal blocks"
    if not pd.notna(cell.get("search_s")) or not cell["prefill_s"]:
        return f"{said}."
    share = percent(cell["search_s"] / cell["prefill_s"])
    return f"{said}, which it chooses in {share} % of the time of the prefill."


def _layers(name: str, samples: pd.DataFrame) -> Rows:
    """A line a layer, a column a prefill: the mean share over prompts."""
    shares = stats.computed(samples)
    known = shares.notna()
    columns: dict[str, Mapping[str, float]] = {
        str(way): pd.DataFrame(list(part)).mean().to_dict()
        for way, part in shares[known].groupby(samples["prefill"][known], sort=False)
    }
    layers = list(dict.fromkeys(layer for column in columns.values() for layer in column))
    body = [[layer, *(percent(column[layer]) for column in columns.values())] for layer in layers]
    return Rows(
        f"{name}: blocks that each layer computed, in % of the causal ones",
        ["Layer", *columns],
        body,
        ["Means over prompts and heads. Layers that keep a window or a state are not among them."],
    )
