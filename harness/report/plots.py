"""The picture: accuracy against the share of the cache that was evicted, a line a method.

Draws one (model, task, protocol) group of the cells table and knows nothing else of the run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report import published, sizes, tables

# Okabe and Ito's colour-blind-safe palette, its yellow darkened to show on white; black and grey
# are kept for the two references. A method has a colour; its variants share it, each with a dash.
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7A00", "#6A3D9A"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h"]
DASHES = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 2, 1, 2)),
    "longdash": (0, (9, 2)), "longdashdot": (0, (9, 2, 1, 2)),
}  # fmt: skip
STEP, SPREAD = 0.06, 0.30  # bars of one ratio stand side by side: each, in all, in doublings
HOLLOW = (
    "Hollow = vacuous: no scored token came from a compacted cache,\n"
    "so the cell repeats the full cache and says nothing about its method."
)
STARS = "Star = the score that others published of this cell."
REFERENCE = {"full cache": ("#000000", (0, (6, 3))), "blank image": ("#777777", (0, (2, 2)))}


class Style(NamedTuple):
    """How the line of a method looks; `dash` is a name in DASHES."""

    colour: str
    marker: str
    dash: str


@dataclass(frozen=True)
class _End:
    """Where a line leaves the axes on the right, and how it looks."""

    height: float
    label: str
    colour: str
    marker: str | None
    face: str


def curve(cells: pd.DataFrame, path: Path) -> None:
    """Write the `figure` of the cells to `path` as PNG, the same bytes for the same cells."""
    figure(cells).savefig(path, format="png", metadata={"Software": None})


def bytes_curve(cells: pd.DataFrame, path: Path) -> None:
    """Write the `figure` against bytes to `path` as PNG, the same bytes for the same cells."""
    figure(cells, by_bytes=True).savefig(path, format="png", metadata={"Software": None})


def figure(cells: pd.DataFrame, by_bytes: bool = False) -> Figure:
    """Accuracy with 95 % intervals against compression, a line a method.

    The horizontal axis is log2 of the compression factor 1 / (1 - ratio), which sets the usual
    ratios about evenly apart; cells with an absolute budget stand at their measured evicted share.
    Variants named after another method ("restkv_mean" beside "restkv") get a panel of their own,
    except against bytes, where all are compared with all.

    Args:
        cells: one (model, task, protocol) group of `stats.summarise`.
        by_bytes: the axis is what the caches take in bytes, see `sizes`.
    """
    rows = sizes.placed(cells) if by_bytes else placed(cells)
    names = list(rows["label"].unique())
    shown = [("methods", names)] if by_bytes else panels(names)
    picture = Figure(figsize=(0.6 + 6.2 * len(shown), 5.2), dpi=150, layout="constrained")
    axes = picture.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    style = styles(names)
    for place, (axis, (title, labels)) in enumerate(zip(axes, shown, strict=True)):
        _panel(axis, rows, labels, cells, style, by_bytes)
        if len(shown) > 1:
            axis.set_title(title, loc="left", fontsize=10, parse_math=False)
        if place == 0:
            metric = cells["metric"].iloc[0]
            axis.set_ylabel(f"{metric} (%), 95 % interval over questions", parse_math=False)
    picture.suptitle(_title(cells), x=0.01, ha="left", fontsize=11, parse_math=False)
    stars = published.beside(rows, pd.DataFrame())
    notes = [HOLLOW] * bool(rows["vacuous"].any()) + [STARS] * bool(len(stars))
    if notes:
        picture.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=9)
    return picture


def placed(cells: pd.DataFrame) -> pd.DataFrame:
    """The compressed cells with `evicted` (the ratio asked for; measured for absolute budgets, and
    as bytes where some layers stay whole) and `x`, the place on a logarithmic axis: log2 of the
    compression factor.
    """
    rows = tables.compressed(cells)
    measured = 1 - rows.groupby("budget")["kept_fraction"].transform("mean").astype(float)
    evicted = rows["ratio"].astype(float).fillna(measured)
    if len(tables.whole_layers(cells)):
        kept = rows["cache_bytes"] / rows["full_cache_bytes"]
        evicted = 1 - kept.groupby([rows["ratio"], rows["budget"]], dropna=False).transform("mean")
    evicted = evicted.clip(upper=0.999)
    return rows.assign(evicted=evicted, x=-np.log2(1 - evicted))


def _title(cells: pd.DataFrame) -> str:
    first = cells.iloc[0]
    size = f"{cells['n_questions'].max():,} questions, {cells['n_rows'].max():,} rows"
    name = f"{tables.short(first['model'])} on {first['task']}, protocol {first['protocol']}"
    return f"{name}  ({size})"


def panels(labels: list[str]) -> list[tuple[str, list[str]]]:
    """Titles and labels: methods, and apart from them the variants with the methods they vary."""
    base = _bases(labels)
    methods = [label for label in labels if base[label] == label]
    varied = [name for name in methods if list(base.values()).count(name) > 1]
    variants = [label for label in labels if base[label] != label]
    if not variants or len(methods) == len(varied):
        return [("methods", labels)]
    return [("methods", methods), (f"variants of {', '.join(varied)}", varied + variants)]


def _bases(labels: list[str]) -> dict[str, str]:
    """The method that each label is a variant of: the shortest one that it begins with, or its own
    name.
    """
    return {
        label: min(
            (name for name in labels if label.startswith(f"{name}_")), key=len, default=label
        )
        for label in labels
    }


def styles(labels: list[str]) -> dict[str, Style]:
    """The looks of each label, the same in every picture: a colour a method, a dash a variant."""
    base = _bases(labels)
    methods = [label for label in labels if base[label] == label]
    dashes, style = list(DASHES), {}
    for place, label in enumerate(labels):
        turn = methods.index(base[label])
        kin = [other for other in labels if base[other] == base[label]]
        step = kin.index(label) if label != base[label] else 0
        dash = dashes[(step + turn // len(COLOURS)) % len(dashes)]
        style[label] = Style(COLOURS[turn % len(COLOURS)], MARKERS[place % len(MARKERS)], dash)
    return style


def _panel(
    axis: Axes,
    rows: pd.DataFrame,
    labels: list[str],
    cells: pd.DataFrame,
    style: dict[str, Style],
    by_bytes: bool,
) -> None:
    ends: list[_End] = []
    for _, cell in tables.references(cells[cells["accuracy"].notna()]).iterrows():
        ends.append(_reference(axis, cell))
    half = 0.0 if by_bytes else min(SPREAD, STEP * (len(labels) - 1)) / 2
    offsets = np.linspace(half, -half, len(labels))
    for label, offset in zip(reversed(labels), offsets, strict=True):
        line = rows[rows["label"] == label].sort_values("x")
        ends += _line(axis, line, offset, style[label])
    _stars(axis, rows[rows["label"].isin(labels)], style)
    _ticks(axis, rows, by_bytes)
    bottom, top = axis.get_ylim()
    axis.set_ylim(max(bottom, -2), min(top, 102))
    _name_lines(axis, ends)


def _reference(axis: Axes, cell: pd.Series) -> _End:
    """The full cache or the blank image: a dashed line in a band of its interval."""
    colour, dashes = REFERENCE[cell["label"]]
    low, high, height = (100 * cell[name] for name in ("accuracy_low", "accuracy_high", "accuracy"))
    axis.axhspan(low, high, color=colour, alpha=0.08, lw=0, zorder=0)
    axis.axhline(height, color=colour, ls=dashes, lw=1.3, zorder=1)
    return _End(height, cell["label"], colour, None, "none")


def _line(axis: Axes, line: pd.DataFrame, offset: float, style: Style) -> list[_End]:
    """One method: thin bars beside its points, a line, markers that are hollow where a cell is
    vacuous.

    Its end is at the last score that is known, if any is.
    """
    colour, marker = style.colour, style.marker
    x = line["x"].to_numpy()
    y, low, high = (100 * line[n].to_numpy() for n in ("accuracy", "accuracy_low", "accuracy_high"))
    axis.errorbar(x + offset, y, yerr=[y - low, high - y], fmt="none", ecolor=colour,
                  elinewidth=0.9, alpha=0.55, capsize=0, zorder=2)  # fmt: skip
    axis.plot(x, y, color=colour, ls=DASHES[style.dash], lw=1.4, alpha=0.9, zorder=3)
    faces = np.where(line["vacuous"].to_numpy(dtype=bool), "white", colour)
    for place, face in enumerate(faces):
        axis.plot(x[place], y[place], ls="", marker=marker, ms=5.5, mec=colour, mew=1.2,
                  mfc=str(face), zorder=4)  # fmt: skip
    known = np.flatnonzero(~np.isnan(y))[-1:]
    label = str(line["label"].iloc[0])
    return [_End(float(y[i]), label, colour, marker, str(faces[i])) for i in known]


def _stars(axis: Axes, rows: pd.DataFrame, style: dict[str, Style]) -> None:
    """Published scores of these cells, hollow, in the colour of their method."""
    found = published.beside(rows, pd.DataFrame())[["cell_key", "published"]]
    for _, star in rows[["cell_key", "label", "x"]].merge(found, on="cell_key").iterrows():
        axis.plot(star["x"], 100 * star["published"], ls="", marker="*", ms=11, mew=1.2,
                  mec=style[star["label"]].colour, mfc="none", zorder=5)  # fmt: skip


def _ticks(axis: Axes, rows: pd.DataFrame, by_bytes: bool) -> None:
    places = rows.drop_duplicates("x").sort_values("x")
    if by_bytes:
        marks = sizes.ticks(rows)
        axis.set_xticks([*marks], [f"{text}\n{_factor(2**x)}" for x, text in marks.items()])
        axis.set_xlabel(sizes.title(rows))
    else:
        shown = places.iloc[::-1].iloc[:: max(1, len(places) // 8)]
        axis.set_xticks(
            shown["x"].to_numpy(),
            [f"{100 * r:.3g} %\n{_factor(1 / (1 - r))}" for r in shown["evicted"]],
        )
        axis.set_xlabel("share of the KV cache evicted, and compression factor (log scale)")
    axis.grid(axis="y", color="#DDDDDD", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if len(places):
        axis.set_xlim(places["x"].min() - 0.35, places["x"].max() + 0.3)


def _factor(times: float) -> str:
    """A compression factor to two digits, never in powers of ten: 2×, 3.3×, 112×."""
    return (
        f"{times:.0f}\N{MULTIPLICATION SIGN}"
        if times >= 10
        else f"{times:.2g}\N{MULTIPLICATION SIGN}"
    )


def _name_lines(axis: Axes, ends: list[_End]) -> None:
    """The legend: names at the right end of their lines, pushed apart where they would overlap."""
    bottom, top = axis.get_ylim()
    sides = axis.get_yaxis_transform()  # x in shares of the axes, y in percent
    ends = sorted(ends, key=lambda end: end.height)
    heights = spread([end.height for end in ends], 0.05 * (top - bottom))
    for end, height in zip(ends, heights, strict=True):
        axis.plot([1.0, 1.03], [end.height, height], color=end.colour, lw=0.7, alpha=0.7,
                  transform=sides, clip_on=False)  # fmt: skip
        if end.marker:
            axis.plot(1.05, height, ls="", marker=end.marker, ms=5.5, mec=end.colour, mew=1.2,
                      mfc=end.face, transform=sides, clip_on=False)  # fmt: skip
        axis.annotate(
            end.label, xy=(1.075 if end.marker else 1.04, height), xycoords=sides, va="center",
            fontsize=9, color="#222222", annotation_clip=False, parse_math=False,
        )  # fmt: skip
    axis.set_ylim(bottom, top)


def spread(heights: list[float], gap: float) -> list[float]:
    """Ascending heights moved as little as possible so that neighbours are `gap` apart."""
    blocks: list[list[float]] = []  # centre, count
    for height in heights:
        blocks.append([height, 1])
        while len(blocks) > 1 and _touch(blocks[-2], blocks[-1], gap):
            centre, count = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + centre * count) / (last[1] + count)
            last[1] += count
    return [c + gap * (i - (n - 1) / 2) for c, n in blocks for i in range(int(n))]


def _touch(lower: list[float], upper: list[float], gap: float) -> bool:
    return upper[0] - lower[0] < gap * (lower[1] + upper[1]) / 2
