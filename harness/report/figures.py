"""The curves of the page: score against evicted share, and its difference from the full cache.

Draws one (model, task, protocol) group with plotly, in the looks of `plots`, and knows neither
files nor the page. All foreign text goes through `words.label`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from harness.report import plots, sizes, tables, words
from harness.report.words import label, percent, span

SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down",
    "P": "cross", "X": "x", "<": "triangle-left", ">": "triangle-right", "p": "pentagon",
    "h": "hexagon",
}  # fmt: skip
SIGNS = {
    "o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "<": "◀", ">": "▶",
    "p": "⬟", "h": "⬢",
}  # fmt: skip
ACROSS = "━"
REFERENCES = {"full cache": "longdash", "blank image": "dot"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
# On a dark page the colours of `plots` that would drown, as a browser writes them in a style.
DARK = {
    "rgb(213, 94, 0)": "#ff8a3d", "rgb(0, 114, 178)": "#2f8ad0", "rgb(0, 158, 115)": "#2fc79a",
    "rgb(204, 121, 167)": "#e39ac4", "rgb(140, 122, 0)": "#cdb62c", "rgb(106, 61, 154)": "#b18ae0",
    "rgb(0, 0, 0)": "#e4e7ea", "rgb(119, 119, 119)": "#a4adb6",
}  # fmt: skip
GRID = "rgba(128,128,128,0.25)"  # shows on white and on black
NEAR = 5  # the closer view of differences reaches this many margins down
GAP = 0.055  # of the axis, from one name to the next
LABELS = 16  # lines that are named at their ends; more have a legend

#: Where a line ends in percent or points, its name, its colour and the sign before the name.
End = tuple[float, str, str, str]


def base(height: int, **layout: Any) -> go.Figure:
    """An empty figure: transparent, no zooming by a swipe, so that a phone can scroll past it."""
    figure = go.Figure(layout=go.Layout(template="none", height=height))
    figure.update_layout(
        autosize=True, dragmode=False, hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13}, hoverlabel={"align": "left", "font": {"size": 13}},
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "x": 0, "y": -0.13, "yanchor": "top", "title": {"text": ""}},
    )  # fmt: skip
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True, "zeroline": False}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure.update_layout(**layout)


def placed(cells: pd.DataFrame, comparisons: pd.DataFrame, by_bytes: bool = False) -> pd.DataFrame:
    """Compressed cells with their difference from the full cache and where they stand.

    Adds difference, difference_low, difference_high (nan where nothing was compared), evicted (as
    in `plots.placed`; by_bytes: the bytes saved) and x = log2 of the compression factor.
    """
    rows = sizes.placed(cells) if by_bytes else plots.placed(cells)
    names = ["difference", "difference_low", "difference_high"]
    if comparisons.empty:
        return rows.assign(**dict.fromkeys(names, np.nan))
    return rows.merge(comparisons[["cell_key", *names]], on="cell_key", how="left")


def panels(rows: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Titles of pictures and the labels of the methods in each."""
    return plots.panels(list(rows["label"].unique()))


def styles(cells: pd.DataFrame) -> dict[str, plots.Style]:
    """The looks of every method, those of the static picture."""
    return plots.styles(list(tables.compressed(cells)["label"].unique()))


def curves(
    cells: pd.DataFrame, comparisons: pd.DataFrame, by_bytes: bool = False
) -> Iterator[tuple[str, go.Figure]]:
    """Score in percent against the evicted share, or the bytes that are left, a line a method, the
    references across.

    Nothing where no score is known.
    """
    rows = placed(cells, comparisons, by_bytes)
    references = tables.references(cells[cells["accuracy"].notna()])
    if rows["accuracy"].isna().all() and references.empty:
        return
    every = [("methods", list(rows["label"].unique()))] if by_bytes else panels(rows)
    for title, names in every:
        figure = _axes(rows, sizes.ticks(rows) if by_bytes else None)
        for _, cell in references.iterrows():
            _reference(figure, cell, rows)
        style = styles(cells)
        _lines(figure, rows, names, "accuracy", style, 0 if by_bytes else plots.SPREAD)
        ends = _ends(rows, names, "accuracy", style)
        ends += [
            (100 * cell["accuracy"], cell["label"], plots.REFERENCE[cell["label"]][0], ACROSS)
            for _, cell in references.iterrows()
        ]
        _named(figure, ends, _range([rows, references], "accuracy", (0, 100)))
        yield title, figure


def differences(
    cells: pd.DataFrame, comparisons: pd.DataFrame, margin: float
) -> Iterator[tuple[str, go.Figure]]:
    """Difference from the full cache in points, the margin as a band below zero."""
    rows = placed(cells, comparisons)
    rows = rows[rows["difference"].notna()]
    if rows.empty:
        return
    for title, names in panels(rows):
        figure = _axes(rows)
        figure.add_hrect(y0=-100 * margin, y1=0, fillcolor="rgba(0,158,115,0.18)", line_width=0)
        figure.add_hline(y=0, line={"color": "#777777", "width": 1.2})
        figure.add_hline(y=-100 * margin, line={"color": "#009E73", "width": 1.2, "dash": "dash"})
        style = styles(cells)
        _lines(figure, rows, names, "difference", style)
        ends = _ends(rows, names, "difference", style)
        whole = _range([rows], "difference", (-100, 100))
        near = (-NEAR * 100 * margin, NEAR * 100 * margin / 2)
        if whole[0] < 2 * near[0]:
            _views(figure, ends, near, whole)
        else:
            _named(figure, ends, whole)
        yield title, figure


def _axes(rows: pd.DataFrame, marks: dict[float, str] | None = None) -> go.Figure:
    """Axes without titles, which would take a phone's room; the page names them."""
    places = rows.drop_duplicates("x").sort_values("x")
    shown = places.iloc[::-1].iloc[:: max(1, len(places) // 6)]
    said = [f"{100 * evicted:.3g} %" for evicted in shown["evicted"]]
    marks = dict(zip(shown["x"], said, strict=True)) if marks is None else marks
    span = [places["x"].min() - 0.4, places["x"].max() + 0.4] if len(places) else [0, 1]
    ticks = {"tickvals": [*marks], "ticktext": [*marks.values()]}
    return base(400).update_xaxes(**ticks, range=span)


def _lines(
    figure: go.Figure,
    rows: pd.DataFrame,
    names: list[str],
    value: str,
    style: dict[str, plots.Style],
    spread: float = plots.SPREAD,
) -> None:
    """A line a method in `value`, and its intervals, which stand side by side at a setting."""
    half = min(spread, plots.STEP * (len(names) - 1)) / 2
    for place, offset in enumerate(np.linspace(-half, half, len(names))):
        name = names[place]
        line = rows[rows["label"] == name].sort_values("x")
        colour, marker, dash = style[name]
        middle, low, high = (100 * line[n] for n in (value, f"{value}_low", f"{value}_high"))
        symbols = np.where(line["vacuous"].astype(bool), "-open", "")
        figure.add_scatter(
            x=(line["x"] + offset).tolist(), y=middle.tolist(), mode="none", hoverinfo="skip",
            showlegend=False, legendgroup=label(name),
            error_y={"type": "data", "symmetric": False, "array": (high - middle).tolist(),
                     "arrayminus": (middle - low).tolist(), "color": colour, "thickness": 1.2,
                     "width": 0},
        )  # fmt: skip
        figure.add_scatter(
            x=line["x"].tolist(), y=middle.tolist(), name=label(name), legendgroup=label(name),
            mode="lines+markers", hoverinfo="text",
            hovertext=[_hover(cell) for _, cell in line.iterrows()],
            customdata=line["cell_key"].tolist(),
            line={"color": colour, "width": 1.8, "dash": dash},
            marker={"symbol": [SYMBOLS[marker] + end for end in symbols], "size": 8,
                    "color": colour, "line": {"width": 1.5, "color": colour}},
        )  # fmt: skip


def _ends(
    rows: pd.DataFrame, names: list[str], value: str, style: dict[str, plots.Style]
) -> list[End]:
    """Where each line ends on the right: at the last value that is known."""
    found = []
    for name in names:
        line = rows[rows["label"].eq(name) & rows[value].notna()].sort_values("x")
        if len(line):
            height = 100 * float(line[value].iloc[-1])
            found.append((height, name, style[name].colour, SIGNS[style[name].marker]))
    return found


def _range(frames: list[pd.DataFrame], value: str, bounds: tuple[int, int]) -> tuple[float, float]:
    """Of everything drawn, with room around it."""
    names = [f"{value}_low", f"{value}_high"]
    every = 100 * pd.concat([rows[name].astype(float) for rows in frames for name in names])
    every = every.dropna()
    if every.empty:
        return bounds
    room = max(1.0, 0.04 * (every.max() - every.min()))
    return max(every.min(), bounds[0]) - room, min(every.max(), bounds[1]) + room


def _named(figure: go.Figure, ends: list[End], span: tuple[float, float]) -> None:
    """The axis over `span` and each line's name at its end; a legend where they are too many."""
    figure.update_yaxes(range=span)
    if len(ends) <= LABELS:
        longest = max((len(words.cut(name, 18)) for _, name, *_ in ends), default=0)
        figure.update_layout(showlegend=False, margin={"r": 30 + 7 * longest})
        figure.update_layout(annotations=_labels(ends, span))


def _labels(ends: list[End], span: tuple[float, float]) -> list[dict[str, Any]]:
    """The names beside the axes, pushed apart; of a line that ends outside, at that edge."""
    low, high = span
    ends = sorted(ends, key=lambda end: end[0])
    gap = GAP * (high - low)
    heights = plots.spread([min(max(height, low), high) for height, *_ in ends], gap)
    for place in range(len(heights)):  # what plotly would leave out: names outside the axes
        heights[place] = max(heights[place], low + gap * place)
    for place in range(len(heights)):
        heights[-1 - place] = min(heights[-1 - place], high - gap * place)
    return [
        {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 6, "y": height, "yref": "y",
         "yanchor": "middle", "showarrow": False, "font": {"size": 12},
         "text": f'<span style="color: {_rgb(colour)}">{sign}</span> {label(name, 18)}'}
        for height, (_, name, colour, sign) in zip(heights, ends, strict=True)
    ]  # fmt: skip


def _rgb(colour: str) -> str:
    """A colour as DARK names it."""
    return "rgb({}, {}, {})".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))


def _hover(cell: pd.Series) -> str:
    low, high = (percent(cell[f"accuracy_{end}"]) for end in ("low", "high"))
    lines = [
        f"<b>{label(cell['label'])}</b> at {setting(cell)}",
        f"{label(cell['metric'])} {percent(cell['accuracy'])} % {span(low, high)}",
        f"from the full cache {words.difference(cell)} points"
        if pd.notna(cell["difference"])
        else "difference from the full cache not known",
    ]
    if cell["vacuous"]:
        lines.append("vacuous: no scored token came from a compacted cache")
    return "<br>".join(lines)


def setting(row: pd.Series) -> str:
    """How much a row's cell evicts, in words: "ratio 0.9", "64 tokens kept"."""
    name = tables.setting(row)
    return f"{name[2:]} tokens kept" if name.startswith("n=") else f"ratio {name}"


def _reference(figure: go.Figure, cell: pd.Series, rows: pd.DataFrame) -> None:
    """The full cache or the blank image: a line across in a band of its interval."""
    colour = plots.REFERENCE[cell["label"]][0]
    ends = [rows["x"].min() - 0.4, rows["x"].max() + 0.4] if len(rows) else [0, 1]
    middle, low, high = (100 * cell[f"accuracy{end}"] for end in ("", "_low", "_high"))
    text = f"<b>{cell['label']}</b><br>{words.share(cell, 'accuracy')} %"
    figure.add_scatter(
        x=[*ends, *ends[::-1]], y=[low, low, high, high], fill="toself", mode="none",
        fillcolor="rgba(128,128,128,0.15)", legendgroup=cell["label"], showlegend=False,
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=ends, y=[middle, middle], mode="lines", name=cell["label"], legendgroup=cell["label"],
        line={"color": colour, "width": 1.6, "dash": REFERENCES[cell["label"]]},
        hoverinfo="text", hovertext=[text, text],
    )  # fmt: skip


def _views(
    figure: go.Figure, ends: list[End], near: tuple[float, float], whole: tuple[float, float]
) -> None:
    """Buttons for what lies around the margin, which is shown first, and for the whole axis."""
    _named(figure, ends, near)
    many = len(ends) > LABELS
    buttons = [
        {"label": name, "method": "relayout",
         "args": [{"yaxis.range": span} | ({} if many else {"annotations": _labels(ends, span)})]}
        for name, span in (("around the margin", near), ("all", whole))
    ]  # fmt: skip
    choose(figure, buttons)


def choose(figure: go.Figure, buttons: list[dict[str, Any]], active: int = 0) -> None:
    """Put a row of plotly's buttons above the figure, a menu where they are many."""
    many = len(buttons) > 6
    figure.update_layout(
        margin={"t": 48},
        updatemenus=[{
            "type": "dropdown" if many else "buttons", "direction": "down" if many else "right",
            "buttons": buttons, "active": active, "showactive": True, "x": 0, "xanchor": "left",
            "y": 1, "yanchor": "bottom", "pad": {"b": 8, "t": 0, "l": 0, "r": 0},
            "font": {"size": 12},
        }],
    )  # fmt: skip
