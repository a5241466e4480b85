"""Cells as text: names, percentages, the method x ratio grid, the table for a terminal.

Knows how numbers read, not how they come about (stats) nor where they go (report, tracking).
"""

import html
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from harness import stats
from harness.stats.plan import Plan

WIDTH = 100
REFERENCES = {"full": "full cache", "blank": "blank image"}
WHOLE = 0.02  # bytes that are kept beyond the entries: layers that evict nothing hold more
VACUOUS = "v"
FAILED = "f"
FAILED_NOTE = (
    "f = failed, no score: logits or scores of some rows were not finite (NaN or infinite)"
)
VACUOUS_NOTE = "v = vacuous: no scored token came from a compacted cache; it repeats the full cache"


def groups(frame: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """(model, task, protocol) and its rows, in order of appearance."""
    yield from frame.groupby(stats.GROUP, sort=False)


def differing(cells: pd.DataFrame) -> list[str]:
    """Which of model, task and protocol tell the groups of these cells apart."""
    return [name for name in stats.GROUP if cells[name].nunique() > 1]


def setting(cell: pd.Series | Mapping[str, Any]) -> str:
    """How much of the cache a cell keeps: "0.9" for a ratio, "n=64" for an absolute budget."""
    return f"{cell['ratio']:g}" if pd.notna(cell["ratio"]) else f"n={cell['budget']}"


def settings(cells: pd.DataFrame) -> list[str]:
    """`setting` of each cell."""
    amounts = zip(cells["ratio"], cells["budget"], strict=True)
    return [setting({"ratio": ratio, "budget": budget}) for ratio, budget in amounts]


def whole_layers(cells: pd.DataFrame) -> pd.DataFrame:
    """Compressed cells that keep more of their cache's bytes than of their evictable entries, since
    some layers stay whole: those with a window, or a state in the place of keys.

    A model has none where a cell keeps as much of both: what others keep beyond their entries are
    centroids, steps and zeros. Adds `bytes`: the share of the bytes that is kept.
    """
    rows = compressed(cells)
    share = rows["cache_bytes"] / rows["full_cache_bytes"]
    beyond = (share - rows["kept_fraction"]).where(rows["kept_fraction"] < 1 - WHOLE)
    level = (beyond.abs() <= WHOLE).groupby(rows["model"]).transform("any")
    more = (beyond > WHOLE) & ~level
    return stats.chosen(rows, more).assign(bytes=share[more])


def compressed(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of methods, without the full cache and the blank image; `label` names the line.

    A label is the method, with the start of the cell key where two cells would share a place.
    """
    rows = stats.chosen(cells, stats.roles(cells).eq("method"))
    named = (rows[name].tolist() for name in [*stats.GROUP, "method"])
    amounts = (rows[name].fillna(-1).tolist() for name in ("ratio", "budget"))
    places = [*zip(*named, *amounts, strict=True)]
    if len({*places}) == len(places):  # a tenth of the time of `duplicated` on a few cells
        return rows.assign(label=rows["method"])
    shared = rows.duplicated([*stats.GROUP, "method", "ratio", "budget"], keep=False)
    marked = rows["method"] + " #" + rows["cell_key"].astype(str).str[:6]
    return rows.assign(label=marked.where(shared, rows["method"]))


def labels_at(compressed: pd.DataFrame, place: str) -> dict[str, str]:
    """Cell key to label, of the rows of `compressed` at one setting, in their order."""
    cells = zip(compressed["cell_key"], compressed["label"], settings(compressed), strict=True)
    return {key: label for key, label, where in cells if where == place}


def references(cells: pd.DataFrame) -> pd.DataFrame:
    """The full cache and the blank image, one row each, `label` in words."""
    role = stats.roles(cells)
    first = role.ne("method") & ~role.duplicated()
    return stats.chosen(cells, first).assign(label=role[first].map(REFERENCES))


def failures(cells: pd.DataFrame) -> str:
    """The cells of one group with failed rows: "restkv at 0.9 (3 of 27 rows)"; "" for none."""
    if not count_failed(cells):
        return ""
    rows = pd.concat([references(cells), compressed(cells)])
    return ", ".join(
        plain(cell["label"])
        + (f" at {setting(cell)}" if cell["label"] not in REFERENCES.values() else "")
        + f" ({failed_rows(cell):,} of {cell['n_rows']:,} rows)"
        for _, cell in rows.iterrows()
        if failed_rows(cell)
    )


def count_failed(cells: pd.DataFrame) -> int:
    """How many cells have rows that failed."""
    return int((cells["failed_rows"] > 0).sum()) if "failed_rows" in cells else 0


def failed_rows(cell: pd.Series) -> int:
    """How many rows of a cell failed; tables of earlier versions do not say."""
    return int(cell.get("failed_rows", 0))


def grid(
    cells: pd.DataFrame, text: Callable[[pd.Series], str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the method x setting table; "" where a method lacks a setting."""
    rows = compressed(cells)
    order = rows[["ratio", "budget"]].assign(setting=settings(rows))
    columns = order.sort_values(["ratio", "budget"], kind="stable", na_position="last")
    columns = list(columns["setting"].unique())
    lines: dict[str, dict[str, str]] = {}
    for place, (_, cell) in zip(order["setting"], rows.iterrows(), strict=True):
        lines.setdefault(cell["label"], {})[place] = text(cell)
    body = [[label, *(line.get(name, "") for name in columns)] for label, line in lines.items()]
    return columns, body


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal; a dash for nan."""
    return "-" if pd.isna(value) else f"{100 * value:.1f}"


def interval(cell: pd.Series) -> str:
    """The 95 % interval of a cell's accuracy in percent."""
    return f"[{percent(cell['accuracy_low'])}, {percent(cell['accuracy_high'])}]"


def points(value: float) -> str:
    """A difference of fractions in percentage points with its sign, -0.0 as 0.0; a dash for nan."""
    return "-" if pd.isna(value) else f"{round(100 * value, 1) + 0.0:+.1f}"


def span(row: pd.Series, name: str) -> str:
    """The interval of a difference in percentage points, of the columns <name>_low and _high."""
    low, high = (row[f"{name}_{end}" if name else end] for end in ("low", "high"))
    return f"[{points(low)}, {points(high)}]"


def flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested values as one level of dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def margin(plan: Plan) -> str:
    """What may be lost, in words: "2 points"."""
    points = 100 * plan.margin
    return f"{points:g} point{'' if points == 1 else 's'}"


def listed(parts: Sequence[str]) -> str:
    """Parts as a sentence lists them: "0.7, 0.8 and 0.9"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def short(name: str) -> str:
    """A model path or hub id without the folders before its last part."""
    return str(name).rstrip("/").rsplit("/", 1)[-1]


def escape(text: object, limit: int = 80) -> str:
    """Foreign text made safe for one cell of a Markdown table, cut after `limit` characters.

    HTML, pipes, links, images, emphasis and line breaks lose their meaning, so that what a model
    wrote cannot change the page.
    """
    return re.sub(r"([\\`*\[\]|~$!])", r"\\\1", html.escape(plain(text, limit), quote=False))


def plain(text: object, limit: int = 80) -> str:
    """Foreign text as one line of what can be printed, cut after `limit` characters."""
    line = " ".join(str(text).split())
    line = "".join(character for character in line if character.isprintable())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def console_table(
    cells: pd.DataFrame, means: pd.DataFrame | None = None, columns: int = WIDTH
) -> str:
    """Scores in percent for a terminal of so many columns, a block for each model, task, protocol.

    The full cache and the blank image come first with their 95 % intervals, then a line a method
    and a column a ratio. Vacuous cells carry a "v", those with failed rows an "f". Where `means` of
    groups are given, they stand for the tasks of the groups.
    """
    blocks = [_block(key, rows, columns) for key, rows in groups(cells)]
    if means is not None and len(means):
        alone = cells[cells["group"].isna()]
        blocks = [_block(key, rows, columns) for key, rows in groups(alone)]
        blocks += [
            _block(
                (model, f"mean of the {rows['n_tasks'].max()} tasks of {name}", protocol),
                rows,
                columns,
            )
            for (model, name, protocol), rows in groups(means)
        ]
        inside = groups(cells[cells["group"].notna()])
        blocks += [
            "\n".join(_failed(rows, columns, f"{key[1]}, {key[2]}: "))
            for key, rows in inside
            if failures(rows)
        ]
    return "\n\n".join(blocks)


def _block(key: tuple[str, str, str], cells: pd.DataFrame, wide: int) -> str:
    model, task, protocol = key
    size = f"{cells['n_questions'].max():,} questions, {cells['n_rows'].max():,} rows"
    lines = [f"{short(model)} · {task} · {protocol} · {size}"[:wide]]
    columns, body = grid(cells, _terminal)
    names = [row[0] for row in body] + list(REFERENCES.values())
    metric = str(cells["metric"].iloc[0])
    name = min(max(map(len, [*names, f"{metric} %"])), 34, wide // 3)
    for _, cell in references(cells).iterrows():
        value = f"{_terminal(cell):>8}  {interval(cell)}"
        lines.append(f"{cell['label']:<{name}}{value}")
    width = max([8, *(len(column) + 2 for column in columns)])
    fit = max(1, (wide - name) // width)
    for start in range(0, len(columns), fit):
        part = slice(start, start + fit)
        head = f"{metric} in %, ratio evicted" if name >= 28 else f"{metric} %"
        lines += ["", f"{head:<{name}}" + "".join(f"{text:>{width}}" for text in columns[part])]
        lines += [
            f"{_cut(label, name):<{name}}" + "".join(f"{text:>{width}}" for text in values[part])
            for label, *values in body
        ]
    if compressed(cells)["vacuous"].any():
        lines += ["", *textwrap.wrap(VACUOUS_NOTE, wide)]
    if failures(cells):
        lines += ["", *_failed(cells, wide)]
    return "\n".join(line.rstrip() for line in lines)


def _failed(cells: pd.DataFrame, wide: int, lead: str = "") -> list[str]:
    return textwrap.wrap(f"{lead}{FAILED_NOTE}: {failures(cells)}", wide)


def _terminal(cell: pd.Series) -> str:
    return percent(cell["accuracy"]) + marks(cell)


def marks(cell: pd.Series) -> str:
    """Letters for what keeps a cell from being a result of its method."""
    return (VACUOUS if cell["vacuous"] else "") + (FAILED if failed_rows(cell) else "")


def _cut(label: str, width: int) -> str:
    return label if len(label) <= width else label[: width - 1] + "…"
