"""Methods at a glance: a row a method, over all protocols and ratios of a model and task.

Knows the frames of a study and how numbers look; must not know Markdown, HTML or how a picture of
it is drawn.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from harness import stats
from harness.report import tables
from harness.report.study import Study
from harness.report.tables import listed, percent
from harness.report.verdict_tables import Rows

USUAL = 0.9  # the evicted share at which one setting is shown for all
TRAITS = {"queries": "looks at queries", "learned": "learned", "images": "for images"}
BEST, ALIKE, MORE = "best", "=", "+"
MORE_NOTE = (
    f"{MORE} = keeps more of the cache than was asked: neither best nor compared with the best"
)
HELD, GROWS, BUFFERED = "held", "grows", "held every {} tokens"


@dataclass(frozen=True)
class Glance:
    """One model and task.

    cells: of its methods, with `label`, `place` as `tables.setting` writes it, and `more`: whether
    it keeps more than was asked. references: the full cache and the blank image, one each a
    protocol. standing: `stats.standings` by method. labels: in its order. places: settings, the
    mildest first. usual: the setting that evicts closest to `USUAL`, the stronger of two. above:
    share beyond which cells count in the mean. timed: seconds of scoring a row by protocol; empty
    where not told.
    """

    model: str
    task: str
    metric: str
    cells: pd.DataFrame
    references: pd.DataFrame
    standing: pd.DataFrame
    labels: list[str]
    protocols: list[str]
    places: list[str]
    usual: str
    above: float
    timed: Mapping[str, float]
    traits: Mapping[str, Mapping[str, bool]]
    methods: Mapping[str, Mapping[str, object]]

    def cell(self, label: str, protocol: str, place: str) -> pd.Series | None:
        """The cell of a label, or of a reference at any place; None where there is none."""
        where = "" if label in tables.REFERENCES.values() else place
        return self._found.get((label, protocol, where))

    @cached_property
    def _found(self) -> dict[tuple[str, str, str], pd.Series]:
        """Cells by label, protocol and place, references at no place."""
        found: dict[tuple[str, str, str], pd.Series] = {}
        for _, row in self.references.iterrows():
            found.setdefault((row["label"], row["protocol"], ""), row)
        for _, row in self.cells.iterrows():
            found.setdefault((row["label"], row["protocol"], row["place"]), row)
        return found

    def stand(self, label: str) -> pd.Series:
        """How the method of a label stands."""
        own = self.cells.loc[self.cells["label"].eq(label), "method"].iloc[0]
        return self.standing.loc[own]

    def mark(self, label: str) -> str:
        """Whether a method is the best, not told apart from it, or keeps more than was asked."""
        fair = ~self.standing["keeps_more"].astype(bool)
        means, stand = self.standing.loc[fair, "mean"], self.stand(label)
        if pd.isna(stand["mean"]):
            return ""
        if stand["keeps_more"]:
            return MORE
        if means.count() < 2:
            return ""
        if stand.name == means.idxmax():
            return BEST
        return "" if stand["told_apart"] else ALIKE

    def trait(self, label: str, name: str) -> str:
        """Whether a method has one of `TRAITS`; a dash where the run does not say."""
        known = self.traits.get(label, {}).get(name)
        return {True: "yes", False: "no"}.get(known, "-") if isinstance(known, bool) else "-"

    @property
    def told(self) -> list[str]:
        """The traits that some method has."""
        return [
            name
            for name in TRAITS
            if any(self.trait(label, name) == "yes" for label in self.labels)
        ]

    def decoding(self, label: str) -> str:
        """What its cache does while it answers; a dash where the run does not say."""
        if label not in self.methods:
            return "-"
        params = self.methods[label]
        told = {"hold": HELD, "buffer": BUFFERED.format(params.get("buffer"))}
        return told.get(str(params.get("decode")), GROWS)


def glances(study: Study) -> Iterator[Glance]:
    """One a model and task that several methods ran on, where a study knows how these stand."""
    if study.standings.empty:
        return
    for (model, task), cells in study.cells.groupby(["model", "task"], sort=False):
        rows = tables.compressed(cells)
        if rows["label"].nunique() > 1:
            own = study.standings["model"].eq(model) & study.standings["task"].eq(task)
            yield _glance(study, cells, rows, study.standings[own].set_index("method"))


def _glance(
    study: Study, cells: pd.DataFrame, rows: pd.DataFrame, standing: pd.DataFrame
) -> Glance:
    known = {"place": tables.settings(rows), "evicted": stats.evicted(rows)}
    rows = rows.assign(**known, more=stats.keeps_more(rows))
    shares = rows.groupby("place")["evicted"].mean().sort_values(kind="stable")
    far = (shares - USUAL).abs().round(9)
    names = rows.groupby("method", sort=False)["label"].unique()
    first = cells.iloc[0]
    parts = [part for _, part in cells.groupby("protocol", sort=False)]
    return Glance(
        model=str(first["model"]),
        task=str(first["task"]),
        metric=str(first["metric"]),
        cells=rows,
        references=pd.concat([tables.references(part) for part in parts]),
        standing=standing,
        labels=[label for method in standing.index for label in names[method]],
        protocols=[str(name) for name in cells["protocol"].unique()],
        places=list(shares.index),
        usual=str(far[far.eq(far.min())].index[-1]),
        above=study.plan.above,
        timed=_timed(cells),
        traits=study.traits,
        methods=study.methods,
    )


def _timed(cells: pd.DataFrame) -> dict[str, float]:
    """Seconds of scoring a row, of all cells together; published tables leave times out."""
    if not {*stats.TIMINGS} <= {*cells.columns}:
        return {}
    return {
        str(protocol): part["score_s"].sum() / part["n_rows"].max()
        for protocol, part in cells.groupby("protocol", sort=False)
    }


def rows(glance: Glance) -> Rows:
    """The table, a line a method behind those of the full cache and the blank image."""
    several = len(glance.protocols) > 1
    grid = [(protocol, place) for protocol in glance.protocols for place in glance.places]
    header = ["method", f"mean {glance.metric} %", ""]
    header += [f"{protocol} {place}" if several else place for protocol, place in grid]
    header += [f"loyal, {name}" if several else "loyal" for name in glance.protocols]
    header += ["cache %", "then", *(TRAITS[name] for name in glance.told)]
    top = [
        label for label in tables.REFERENCES.values() if label in set(glance.references["label"])
    ]
    body = [_reference(glance, label, len(header)) for label in top]
    body += [_line(glance, label, grid) for label in glance.labels]
    title = f"{tables.short(glance.model)} on {glance.task}"
    return Rows(title, header, body, list(_notes(glance)))


def _reference(glance: Glance, label: str, width: int) -> list[str]:
    """Its score in the first column of each protocol: it has no ratio."""
    line = [label, "", ""]
    for protocol in glance.protocols:
        cell = glance.cell(label, protocol, "")
        line += [_score(cell), *("" for _ in glance.places[1:])]
    return line + [""] * (width - len(line))


def _line(glance: Glance, label: str, grid: list[tuple[str, str]]) -> list[str]:
    stand = glance.stand(label)
    usual = [glance.cell(label, protocol, glance.usual) for protocol in glance.protocols]
    kept = [cell["cache_bytes"] / cell["full_cache_bytes"] for cell in usual if cell is not None]
    return [
        label,
        mean(stand),
        glance.mark(label),
        *(_score(glance.cell(label, protocol, place)) for protocol, place in grid),
        *("-" if cell is None else percent(1 - cell["flip_rate"]) for cell in usual),
        percent(sum(kept) / len(kept)) if kept else "-",
        glance.decoding(label),
        *(glance.trait(label, name) for name in glance.told),
    ]


def mean(stand: pd.Series) -> str:
    """The mean of a method in percent with its interval; a dash where it has none."""
    if pd.isna(stand["mean"]):
        return "-"
    ends = (percent(stand[f"mean_{end}"]) for end in ("low", "high"))
    return f"{percent(stand['mean'])} [{', '.join(ends)}]"


def _score(cell: pd.Series | None) -> str:
    return "" if cell is None else percent(cell["accuracy"]) + tables.marks(cell) + more(cell)


def more(cell: pd.Series) -> str:
    """The sign of a cell that keeps more than was asked; references have none."""
    return MORE if cell.get("more", False) else ""


def counted(glance: Glance) -> str:
    """Which cells the mean is of: "the 8 cells that evict more than 50 %"."""
    count, share = int(glance.standing["n_places"].iloc[0]), f"{100 * glance.above:g} %"
    if glance.standing["beyond"].iloc[0]:
        return (
            f"the {count} cells that evict more than {share}"
            if count > 1
            else (f"the cell that evicts more than {share}")
        )
    return (
        f"all {count} cells, none of which evicts more than {share}"
        if count > 1
        else (f"the one cell, which evicts no more than {share}")
    )


def _notes(glance: Glance) -> Iterator[str]:
    if glance.standing["mean"].notna().any():
        yield (
            f"Sorted by the mean over {counted(glance)}, with its 95 % interval over questions. "
            f"{ALIKE} is not told apart from the best: the 95 % interval of their difference, "
            "paired by question and not corrected for the number of pairs, reaches 0."
        )
    if glance.standing["mean"].isna().any():
        yield (
            "A method without a mean lacks one of the cells that count, or has rows there that "
            "failed or are vacuous."
        )
    yield (
        f"Loyal: rows that are answered as the full cache answers them, in percent, at "
        f"{glance.usual}. Cache: bytes at {glance.usual} when the prompt has been evicted, in "
        f"percent of the full cache's. Then, while it answers: {HELD} = evicted back after every "
        f"token; {HELD} every n tokens = evicted back when n are over; {GROWS} = not evicted again."
    )
    if "queries" in glance.told:
        yield (
            "A method that looks at no query is query-agnostic: it keeps the same for any question."
        )
    if glance.timed:
        yield _cost(glance)
    if glance.cells["more"].any():
        yield f"{MORE_NOTE}."
    marks = "".join({tables.marks(cell) for _, cell in glance.cells.iterrows()})
    yield from (
        f"{note}."
        for sign, note in (
            (tables.VACUOUS, tables.VACUOUS_NOTE),
            (tables.FAILED, tables.FAILED_NOTE),
        )
        if sign in marks
    )


def _cost(glance: Glance) -> str:
    spent = [f"{1000 * seconds:.2f} ms under {name}" for name, seconds in glance.timed.items()]
    return (
        f"Scoring by all {len(glance.labels)} methods at all {len(glance.places)} settings took "
        f"{listed(spent)} a row, over all layers. Methods share the attention that they look at, "
        "and rows may share what is evicted, so a run cannot tell what one method costs by itself."
    )
