"""The field in one picture: a score for each method, protocol and evicted share, the best on top.

Draws a `Glance` and knows nothing else of the run. Lengths are inches from the upper left corner.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from harness.report import tables
from harness.report.charts import INK, SCALE
from harness.report.glance import ALIKE, BEST, MORE_NOTE, Glance, counted, mean, more
from harness.report.tables import percent, plain

LEAST = 8  # methods that are worth the picture
WIDE, HIGH, APART = 0.52, 0.27, 0.14  # a cell, and the space between blocks
MEAN, TRAIT, EDGE = 1.75, 0.62, 0.15
COLOURS = LinearSegmentedColormap.from_list("field", [str(colour) for _, colour in SCALE])
NOTHING = "#e6e6e6"
LONGEST = 28  # characters of a name
SHORT = {"queries": "looks at\nqueries", "learned": "learned", "images": "made for\nimages"}


def field(glance: Glance, path: Path) -> None:
    """Write the `figure` to `path` as PNG, the same bytes for the same glance."""
    figure(glance).savefig(path, format="png", metadata={"Software": None})


def is_wide(glance: Glance) -> bool:
    """Whether there are methods enough for a picture."""
    return len(glance.labels) >= LEAST


def figure(glance: Glance) -> Figure:
    """Rows of methods in the order of the table, below the full cache and the blank image; columns
    of settings, a block a protocol; on the right the mean and what kind of method it is.
    """
    top = [name for name in tables.REFERENCES.values() if glance.references["label"].eq(name).any()]
    names = {label: plain(label, LONGEST) for label in [*top, *glance.labels]}
    blocks = dict(zip(glance.protocols, _blocks(glance, names), strict=True))
    told = glance.told
    right = (
        max(
            left + max(WIDE * len(glance.places), _inches(plain(name, LONGEST), 9, "bold"))
            for name, left in blocks.items()
        )
        + APART
    )
    width = right + MEAN + TRAIT * len(told) + EDGE
    title = _wrapped(_title(glance), 11, width - 2 * EDGE)
    notes = _wrapped(_note(glance), 8, width - 2 * EDGE)
    head = EDGE + 0.21 * len(title) + 0.62
    ends = [head + HIGH * len(top) + (APART if top else 0) + HIGH * len(glance.labels)]
    height = ends[0] + 0.1 + 0.16 * len(notes) + EDGE
    picture = Figure(figsize=(width, height), dpi=150)
    axis = picture.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    _write(axis, EDGE, EDGE, "\n".join(title), size=11, va="top", ha="left")
    _write(axis, EDGE, ends[0] + 0.1, "\n".join(notes), size=8, va="top", ha="left")
    _heads(axis, glance, blocks, right, told, head)
    for place, label in enumerate([*top, *glance.labels]):
        y = head + HIGH * place + (APART if place >= len(top) and top else 0)
        _write(axis, min(blocks.values()) - 0.08, y + HIGH / 2, names[label], size=9, ha="right")
        for protocol, left in blocks.items():
            _row(axis, glance, label, protocol, left, y)
        if label in glance.labels:
            _right(axis, glance, label, right, told, y + HIGH / 2)
    return picture


def _blocks(glance: Glance, names: dict[str, str]) -> Iterator[float]:
    """Where the cells of each protocol begin; a block is wide enough for its name."""
    left = EDGE + max(_inches(name, 9) for name in names.values()) + 0.1
    for protocol in glance.protocols:
        yield left
        name = _inches(plain(protocol, LONGEST), 9, "bold")
        left += max(WIDE * len(glance.places), name) + APART


def _inches(text: str, points: float, weight: str = "normal") -> float:
    """The width of a line."""
    font = FontProperties(size=points, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def _wrapped(text: str, points: float, width: float) -> list[str]:
    """The text in lines of at most that width."""
    letters = len(text)
    lines = [text] if text else []
    while any(_inches(line, points) > width for line in lines):
        letters -= 1
        lines = textwrap.wrap(text, letters)
    return lines


def _title(glance: Glance) -> str:
    size = f"{glance.cells['n_questions'].max():,} questions, {glance.cells['n_rows'].max():,} rows"
    name = f"{plain(tables.short(glance.model), 60)} on {plain(glance.task, 60)}"
    return f"{name}: {plain(glance.metric, 30)} in percent by the evicted share ({size})"


def _note(glance: Glance) -> str:
    said = []
    if glance.standing["mean"].notna().any():
        said.append(
            f"Mean: over {counted(glance)}, with its 95 % interval over questions; "
            f"{ALIKE} is not told apart from the best, paired by question."
        )
    if glance.cells["more"].any():
        said.append(f"{MORE_NOTE}.")
    marks = "".join({tables.marks(cell) for _, cell in glance.cells.iterrows()})
    if tables.VACUOUS in marks:
        said.append(f"{tables.VACUOUS_NOTE}.")
    if tables.FAILED in marks:
        said.append(f"{tables.FAILED_NOTE}.")
    return " ".join(said)


def _heads(
    axis: Axes,
    glance: Glance,
    blocks: dict[str, float],
    right: float,
    told: list[str],
    head: float,
) -> None:
    """Protocols and settings above the cells, and what stands on their right."""
    for protocol, left in blocks.items():
        _write(axis, left, head - 0.42, plain(protocol, LONGEST), size=9, weight="bold", ha="left")
        for place, name in enumerate(glance.places):
            share = name if name.startswith("n=") else f"{100 * float(name):g} %"
            _write(axis, left + WIDE * (place + 0.5), head - 0.14, share, size=8)
    if glance.standing["mean"].notna().any():
        _write(axis, right + 0.1, head - 0.14, "mean, 95 % interval", size=8, ha="left")
    for place, name in enumerate(told):
        x = right + MEAN + TRAIT * (place + 0.5)
        _write(axis, x, head - 0.05, SHORT[name], size=7.5, va="bottom")


def _row(axis: Axes, glance: Glance, label: str, protocol: str, left: float, top: float) -> None:
    """The cells of a label under one protocol; a reference is one cell as wide as the block."""
    if label in tables.REFERENCES.values():
        cell = glance.cell(label, protocol, "")
        _cell(axis, cell, left, top, WIDE * len(glance.places))
        return
    for place, name in enumerate(glance.places):
        _cell(axis, glance.cell(label, protocol, name), left + WIDE * place, top, WIDE)


def _cell(axis: Axes, cell: pd.Series | None, left: float, top: float, width: float) -> None:
    known = cell is not None and pd.notna(cell["accuracy"])
    value, marks, sign = (
        (cell["accuracy"], tables.marks(cell), more(cell))
        if cell is not None
        else (float("nan"), "", "")
    )
    colour = COLOURS(value) if known and not marks else NOTHING
    box = Rectangle((left, top), width, HIGH, facecolor=colour, edgecolor="white", lw=1)
    axis.add_patch(box)
    _write(axis, left + width / 2, top + HIGH / 2, percent(value) + marks + sign, size=8.5)


def _right(
    axis: Axes, glance: Glance, label: str, left: float, told: list[str], middle: float
) -> None:
    """The mean of a method and its kind."""
    stand, mark = glance.stand(label), glance.mark(label)
    sign = f"  {mark}" if mark and mark != BEST else ""
    weight = "bold" if mark == BEST else "normal"
    _write(axis, left + 0.1, middle, mean(stand) + sign, size=8.5, ha="left", weight=weight)
    for place, name in enumerate(told):
        x, known = left + MEAN + TRAIT * (place + 0.5), glance.trait(label, name)
        if known == "yes":
            axis.plot(x, middle, ls="", marker="o", ms=5, color=INK)
        elif known != "no":
            _write(axis, x, middle, known, size=8.5)


def _write(
    axis: Axes,
    x: float,
    y: float,
    text: str,
    size: float,
    ha: str = "center",
    va: str = "center",
    weight: str = "normal",
) -> None:
    axis.text(x, y, text, fontsize=size, ha=ha, va=va, weight=weight, color=INK, parse_math=False)
