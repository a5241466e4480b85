"""The other pictures of the page: abilities, the ablation, where the temporal weight fell.

Draws frames of one (model, task, protocol) group with plotly and knows neither files nor the page.
All foreign text goes through `words.label`.
"""

import textwrap
from collections.abc import Iterator

import pandas as pd
import plotly.graph_objects as go

from harness import stats
from harness.report import figures, plots, tables, words
from harness.report.figures import base, choose
from harness.report.words import label, percent

ROW, COLUMN = 30, 46  # pixels a line and a column of a heatmap
SCALE = [[0.0, "#fff3d6"], [0.5, "#bcd9ea"], [1.0, "#6fb1dd"]]  # all light: numbers stand on it
INK = "#121212"  # of those numbers, on a light and a dark page alike
SEGMENTS = {
    "image": ("#0072B2", ""), "context": ("#56B4E9", "+"), "question": ("#D55E00", "/"),
    "options": ("#009E73", "x"), "instruction": ("#E69F00", "."), "template": ("#999999", "-"),
}  # fmt: skip


def heatmap(cells: pd.DataFrame, abilities: pd.DataFrame, focus: str) -> go.Figure | None:
    """Score in percent by ability and method; a button a setting, `focus` shown first.

    None where the task has no kinds of question or no score is known.
    """
    if abilities.empty or abilities["accuracy"].isna().all():
        return None
    names = tables.compressed(cells).set_index("cell_key")["label"]
    role = stats.roles(abilities)
    rows = abilities.assign(
        label=role.map(tables.REFERENCES).fillna(abilities["cell_key"].map(names)),
        setting=[tables.setting(row) for _, row in abilities.iterrows()],
    )
    methods = rows[role.eq("method")].sort_values(["ratio", "budget"], kind="stable")
    settings = list(methods["setting"].unique()) or [""]
    kinds = _kinds(rows)
    columns = list(rows["label"].unique())
    first = settings.index(focus) if focus in settings else 0
    figure = base(110 + ROW * len(kinds), width=240 + COLUMN * len(columns))
    for place, name in enumerate(settings):
        shown = rows[role.ne("method") | rows["setting"].eq(name)]
        figure.add_trace(_panel(shown, kinds, columns, name).update(visible=place == first))
    figure.update_yaxes(
        tickvals=list(range(len(kinds))), ticktext=[_wrapped(ability) for _, ability in kinds],
        tickfont={"size": 11}, autorange="reversed",
    )  # fmt: skip
    figure.update_xaxes(
        tickvals=list(range(len(columns))), ticktext=[label(name, 24) for name in columns],
        tickangle=-40, tickfont={"size": 11},
    )  # fmt: skip
    figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False)
    if len(settings) > 1:
        seen = [[name == other for other in settings] for name in settings]
        buttons = [
            {"label": label(name), "method": "restyle", "args": [{"visible": row}]}
            for name, row in zip(settings, seen, strict=True)
        ]
        choose(figure, buttons, first)
    return figure


def _kinds(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Levels and their abilities; numbers, as lengths of a context are, in their order."""
    kinds = rows[["level", "ability"]].drop_duplicates()
    kinds = kinds.assign(number=pd.to_numeric(kinds["ability"], errors="coerce"))
    levels = [
        part.sort_values("number", kind="stable") for _, part in kinds.groupby("level", sort=False)
    ]
    found = pd.concat(levels)[["level", "ability"]]
    return list(found.itertuples(index=False, name=None))


def _panel(
    rows: pd.DataFrame, kinds: list[tuple[str, str]], columns: list[str], name: str
) -> go.Heatmap:
    """One setting: a line an ability and a column a method."""
    found = {
        (row["level"], row["ability"], row["label"]): row
        for _, row in rows.drop_duplicates(["level", "ability", "label"]).iterrows()
    }
    lines = [[found.get((*kind, column)) for column in columns] for kind in kinds]
    value = [[None if row is None else 100 * row["accuracy"] for row in line] for line in lines]
    return go.Heatmap(
        z=value, x=list(range(len(columns))), y=list(range(len(kinds))), name=label(name),
        zmin=0, zmax=100, colorscale=SCALE, xgap=1, ygap=1,
        texttemplate="%{z:.1f}", textfont={"size": 11, "color": INK}, hoverinfo="text",
        hovertext=[["" if row is None else _hover(row) for row in line] for line in lines],
        customdata=[[None if row is None else row["cell_key"] for row in line] for line in lines],
        colorbar={"title": {"text": "%"}, "thickness": 12, "len": 1, "outlinewidth": 0},
    )  # fmt: skip


def _wrapped(ability: object) -> str:
    """The name of an ability in at most two lines."""
    return "<br>".join(map(label, textwrap.wrap(words.cut(words.visible(ability), 46), 24)))


def _hover(row: pd.Series) -> str:
    lines = [
        f"<b>{label(row['label'])}</b>",
        f"{label(row['ability'])} ({label(row['level'])}), {row['n_rows']:,} rows",
        f"{percent(row['accuracy'])} %",
    ]
    if pd.notna(row.get("difference")):
        lines.append(f"from the full cache {words.difference(row)} points")
    return "<br>".join(lines)


def forest(ablation: pd.DataFrame, margin: float) -> go.Figure | None:
    """Effects on the score in points with 95 % intervals: a line a contrast, a symbol a setting.

    Hollow where the contrast is about a part that was never at work. None where nothing was varied
    or no effect is known.
    """
    if ablation.empty or ablation["difference"].isna().all():
        return None
    rows = ablation[ablation["difference"].notna()]
    rows = rows.assign(setting=[figures.setting(row) for _, row in rows.iterrows()])
    rows = rows.assign(contrast_label=[contrast(row) for _, row in rows.iterrows()])
    names = list(rows["contrast_label"].unique())
    settings = list(rows["setting"].unique())
    step = 0.8 / len(settings)
    figure = base(90 + len(names) * max(36, 11 * len(settings)))
    figure.add_vrect(
        x0=-100 * margin, x1=100 * margin, fillcolor="rgba(128,128,128,0.12)", line_width=0
    )
    figure.add_vline(x=0, line={"color": "#777777", "width": 1.2})
    for place, name in enumerate(settings):
        line = rows[rows["setting"] == name]
        middle, low, high = (100 * line[column] for column in ("difference", "low", "high"))
        colour = plots.REFERENCE["blank image"][0]  # grey: colours are for methods
        symbol = list(figures.SYMBOLS.values())[place % len(figures.SYMBOLS)]
        offset = step * (place - (len(settings) - 1) / 2)
        figure.add_scatter(
            x=middle.tolist(), y=[names.index(c) + offset for c in line["contrast_label"]],
            mode="markers", name=label(name), hoverinfo="text",
            hovertext=[_effect(row) for _, row in line.iterrows()],
            marker={"symbol": [symbol + ("-open" if i else "") for i in line["inert"]], "size": 8,
                    "color": colour, "line": {"width": 1.5, "color": colour}},
            error_x={"type": "data", "symmetric": False, "array": (high - middle).tolist(),
                     "arrayminus": (middle - low).tolist(), "color": colour, "thickness": 1.2,
                     "width": 0},
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, tickfont={"size": 11},
        autorange="reversed", showgrid=True,
    )  # fmt: skip
    figure.update_xaxes(title="points of the score", side="top")
    return figure.update_layout(legend={"y": -0.02})


def contrast(row: pd.Series) -> str:
    """A line of the forest: effect and contrast, below them what is held."""
    given = f"<br>{label(row['given'])}" if pd.notna(row["given"]) and row["given"] else ""
    return f"{label(row['effect'])}: {label(row['contrast'])}{given}"


def _effect(row: pd.Series) -> str:
    lines = [
        f"<b>{contrast(row)}</b>",
        f"at {row['setting']}: {words.points(row['difference'])} points "
        f"{words.span(words.points(row['low']), words.points(row['high']))}",
        f"p {words.probability(row['p'])}",
    ]
    if row["inert"]:
        lines.append("cannot tell: the adaptive window was never at work")
    return "<br>".join(lines)


def weights(frame: pd.DataFrame) -> go.Figure:
    """Where the weight of the temporal score fell: a bar a variant, a part of the bar a segment.

    Args:
        frame: one task; columns method, segment, share (fractions that sum to 1 a method).
    """
    methods = list(frame["method"].unique())
    order = [name for name in SEGMENTS if name in set(frame["segment"])]
    order += [name for name in frame["segment"].unique() if name not in SEGMENTS]
    figure = base(
        90 + 34 * len(methods), barmode="stack", legend={"y": -0.1, "traceorder": "normal"}
    )
    for name in order:
        rows = frame[frame["segment"] == name]
        colour, pattern = SEGMENTS.get(name, ("#CC79A7", "|"))
        figure.add_bar(
            orientation="h", x=(100 * rows["share"]).tolist(), name=label(name),
            y=[methods.index(method) for method in rows["method"]],
            marker={"color": colour, "line": {"width": 0},
                    "pattern": {"shape": pattern, "fillmode": "overlay", "fgcolor": "#ffffff",
                                "size": 5, "solidity": 0.25}},
            hoverinfo="text", hovertext=list(_shares(rows)),
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(methods))), ticktext=[label(name, 30) for name in methods],
        autorange="reversed", showgrid=False,
    )  # fmt: skip
    figure.update_xaxes(title="share of the weight (%)", range=[0, 100], dtick=25, side="top")
    return figure.update_layout(margin={"r": 24})


def _shares(rows: pd.DataFrame) -> Iterator[str]:
    for _, row in rows.iterrows():
        yield (
            f"<b>{label(row['method'])}</b><br>{label(row['segment'])} {percent(row['share'])} %"
        )
