"""The text of a run: what was asked, what its tables can and cannot say, and the tables themselves.

Turns a samples frame and its cells into Markdown. Knows no files and draws nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import pandas as pd

from harness import stats, tables
from harness.tables import escape, percent

QUESTION = (
    "Does ReST-KV's spatial-temporal smoothing keep MMBench accuracy when more than half of the "
    "KV cache is evicted?"
)
INERT = (
    "their spatial smoothing was the same pool for every token, so this run says nothing about its "
    "adaptive part"
)
SHARED = (
    "score and decode: milliseconds a row, those of the batch shared evenly among the cells that "
    "were decoded together; they add up to the sweep's time and are not what a method costs by "
    "itself."
)
EXAMPLES = 10
SPOKEN_FOR = {"question", "name", "caveat"}  # keys of meta that stand in the text itself


def markdown(
    samples: pd.DataFrame,
    cells: pd.DataFrame,
    abilities: pd.DataFrame,
    meta: Mapping[str, object],
    curves: Iterable[str],
) -> str:
    """The whole summary.

    Args:
        samples: a row a cell and question row.
        cells: `stats.summarise(samples)`.
        abilities: `stats.abilities(samples)`.
        meta: `question`, `name` and `caveat` (a sentence about the model or data) are spoken; all
            other entries, nested ones with dotted names, are listed as provenance.
        curves: file names of the pictures, one a (model, task, protocol) group.
    """
    lines = [f"# {escape(meta.get('name', 'Accuracy against cache compression'))}", ""]
    lines += [f"**Asked:** {escape(meta.get('question', QUESTION), 400)}", ""]
    parts = list(tables.groups(cells))
    for (key, group), picture in zip(parts, curves, strict=True):
        model, task, protocol = map(escape, key)
        if len(parts) > 1:
            lines += [f"## {model} on {task}, protocol {protocol}", ""]
        own = samples[(samples[stats.GROUP] == list(key)).all(axis=1)]
        kinds = abilities[(abilities[stats.GROUP] == list(key)).all(axis=1)]
        lines += [" ".join(_honesty(own, group, meta)), ""]
        lines += [_window(group), *_reading(group), ""]
        lines += [f"![accuracy against compression]({picture})", ""]
        lines += list(_sections(own, group, kinds))
    return "\n".join([*lines, "## Provenance", "", *_provenance(meta), ""])


def _sections(samples: pd.DataFrame, cells: pd.DataFrame, abilities: pd.DataFrame) -> Iterator[str]:
    yield from _titled("Accuracy in percent, with 95 % intervals over questions", _accuracy(cells))
    yield from _titled(
        "Circular accuracy in percent (a question counts when all its rotations are right)",
        _pivot(cells, lambda cell: percent(cell["circular_accuracy"]), cells),
    )
    yield from _titled(
        "Answers that differ from the full cache's on the same row, in percent",
        _pivot(cells, lambda cell: percent(cell["flip_rate"])),
    )
    yield from _titled("Measured cells", [*_measured(cells), "", SHARED])
    if not abilities.empty:
        place = focus(cells)
        yield from _titled(
            f"Accuracy by ability in percent, methods at {place}", _by_ability(abilities, place)
        )
    examples = _examples(samples)
    if examples:
        yield from _titled("Answers that eviction changed, the first few", examples)


def _titled(title: str, table: list[str]) -> Iterator[str]:
    yield from (f"### {title}", "", *table, "")


def _honesty(
    samples: pd.DataFrame, cells: pd.DataFrame, meta: Mapping[str, object]
) -> Iterator[str]:
    """What the table can and cannot say; the first sentence carries the weight."""
    rows = tables.compressed(cells)
    total, empty = len(rows), int(rows["vacuous"].sum())
    model, task, protocol = (escape(cells.iloc[0][name]) for name in stats.GROUP)
    if total == 0:
        yield "This table holds no compressed cell, so it cannot say anything about eviction."
    elif empty == total:
        yield (
            f"This table cannot answer the question: all {total} compressed cells are vacuous, "
            f"because under protocol {protocol} no scored token came from a compacted cache; they "
            "repeat the full cache by construction and are no result of any method."
        )
    elif empty:
        yield (
            f"This table answers only in part: {empty} of {total} compressed cells are vacuous "
            f"(marked {tables.VACUOUS}; no scored token came from a compacted cache), are no "
            "result of their method, and only the others can be compared."
        )
    else:
        yield (
            f"This table can say how {total} compressed cells of {model} fare on "
            f"{cells['n_questions'].max():,} questions of {task} under protocol {protocol}, for in "
            "every cell scored tokens came from the compacted cache; it cannot say how other "
            "models, other tasks or other prompt lengths fare."
        )
    if "caveat" in meta:
        yield escape(meta["caveat"], 600)
    yield from _doubts(samples, cells)


def _doubts(samples: pd.DataFrame, cells: pd.DataFrame) -> Iterator[str]:
    """Findings in the numbers themselves that weaken a comparison."""
    by_label = tables.references(cells).set_index("label")
    full, blank = (by_label.reindex([name]).iloc[0] for name in tables.REFERENCES.values())
    if pd.isna(full["accuracy"]):
        yield "The full cache was not run, so losses cannot be read off."
    elif pd.isna(blank["accuracy"]):
        yield "The blank image was not run, so it is unknown how much the answers need the image."
    elif full["accuracy_low"] <= blank["accuracy_high"]:
        yield (
            f"With the full cache the model scores {percent(full['accuracy'])} %, with a blank "
            f"image {percent(blank['accuracy'])} %, and the intervals overlap: it does not "
            "demonstrably use the image, and eviction of image tokens cannot show."
        )
    if cells["n_rows"].nunique() > 1:
        yield (
            f"Cells hold between {cells['n_rows'].min():,} and {cells['n_rows'].max():,} rows: the "
            "run is incomplete, and cells are not on equal ground."
        )
    rows = tables.compressed(cells)
    yield from _fallbacks(samples, rows)
    real = set(rows.loc[~rows["vacuous"].astype(bool), "cell_key"])
    share = float((samples.loc[samples["cell_key"].isin(real), "exposed_tokens"] == 0).mean())
    if share > 0:
        yield (
            f"In cells that are not vacuous {percent(share)} % of the rows still had no scored "
            "token from the compacted cache."
        )


def _fallbacks(samples: pd.DataFrame, rows: pd.DataFrame) -> Iterator[str]:
    """Cells whose figures are, in part, those of another method's pattern."""
    for _, cell in rows[rows["fallback_rate"] > 0].iterrows():
        used = samples.loc[samples["cell_key"] == cell["cell_key"], "fallback"].dropna().iloc[0]
        yield (
            f"The pattern of {escape(cell['method'])} at {tables.setting(cell)} did not fit so few "
            f"tokens in {percent(cell['fallback_rate'])} % of the rows; {escape(used)}'s was used."
        )


def _window(cells: pd.DataFrame) -> str:
    """How often the adaptive window of ReST-KV was at work."""
    active = tables.compressed(cells).groupby("label", sort=False)["adaptive_active"].mean()
    active = active.dropna()
    if active.empty:
        return "No method here has an adaptive window."
    names = ", ".join(f"{escape(name)} {percent(share)} %" for name, share in active.items())
    text = f"The adaptive window differed from the fixed pool in this share of heads: {names}."
    never = ", ".join(escape(name) for name in active.index[active == 0])
    return f"{text} It never did for {never}: {INERT}." if never else text


def _reading(cells: pd.DataFrame) -> Iterator[str]:
    """Best and worst method at the setting in focus, vacuous cells left out."""
    rows = tables.compressed(cells)
    rows = rows[
        ~rows["vacuous"].astype(bool) & (rows.apply(tables.setting, axis=1) == focus(cells))
    ]
    if rows.empty:
        return
    best, worst = (rows.loc[rows["accuracy"].agg(which)] for which in ("idxmax", "idxmin"))
    yield "".join(
        [
            f"\nAt {focus(cells)}: ",
            f"best {escape(best['label'])} {percent(best['accuracy'])} % {_brackets(best)}, ",
            f"worst {escape(worst['label'])} {percent(worst['accuracy'])} % {_brackets(worst)}",
            *(
                f", {cell['label']} {percent(cell['accuracy'])} %"
                for _, cell in tables.references(cells).iterrows()
            ),
            ".",
        ]
    )


def focus(cells: pd.DataFrame) -> str:
    """The one setting shown in detail: ratio 0.9 where it was run, else the strongest there is."""
    rows = tables.compressed(cells)
    rows = rows.sort_values(["ratio", "budget"], ascending=[True, False], na_position="first")
    names = [tables.setting(cell) for _, cell in rows.iterrows()]
    return "0.9" if "0.9" in names else (names[-1] if names else "")


def _table(header: list[str], body: Iterable[list[str]], words: int = 1) -> list[str]:
    """A Markdown table whose first `words` columns are text and the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return [f"| {' | '.join(row)} |" for row in (header, rule, *body)]


def _accuracy(cells: pd.DataFrame) -> list[str]:
    def text(cell: pd.Series) -> str:
        return f"{percent(cell['accuracy'])}{_mark(cell)} {_brackets(cell)}"

    table = _pivot(cells, text, cells)
    return [*table, "", tables.VACUOUS_NOTE + "."] if cells["vacuous"].any() else table


def _mark(cell: pd.Series) -> str:
    return f" **{tables.VACUOUS}**" if cell["vacuous"] else ""


def _brackets(cell: pd.Series) -> str:
    return escape(tables.interval(cell))


def _pivot(
    cells: pd.DataFrame,
    text: Callable[[pd.Series], str],
    references: pd.DataFrame | None = None,
) -> list[str]:
    """Method x ratio; the references on top, in the first column of numbers."""
    columns, body = tables.grid(cells, text)
    lines = [[escape(label), *values] for label, *values in body]
    if references is not None:
        top = tables.references(references)
        blanks = [""] * max(0, len(columns) - 1)
        lines = [[cell["label"], text(cell), *blanks] for _, cell in top.iterrows()] + lines
    return _table(["ratio evicted", *(columns or ["0"])], lines)


def _measured(cells: pd.DataFrame) -> list[str]:
    header = [
        "method", "ratio", "cache KiB", "of full %", "kept %", "image %", "text %",
        "exposed tokens", "unparsed %", "window", "score ms", "decode ms",
    ]  # fmt: skip
    top = tables.references(cells)
    rows = pd.concat([top, tables.compressed(cells)])
    return _table(header, [_measures(cell) for _, cell in rows.iterrows()])


def _measures(cell: pd.Series) -> list[str]:
    parts = ("kept_fraction", "kept_fraction_image", "kept_fraction_text")
    window = cell["window_effective"]
    return [
        escape(cell["label"]) + _mark(cell),
        tables.setting(cell),
        f"{cell['cache_bytes'] / 1024:,.1f}",
        percent(cell["cache_bytes"] / cell["full_cache_bytes"]),
        *(percent(cell[name]) for name in parts),
        f"{cell['exposed_tokens']:.2f}",
        percent(cell["unparsed_rate"]),
        "-" if pd.isna(window) else f"{window:.1f}",
        *(f"{1000 * cell[name] / cell['n_rows']:.2f}" for name in ("score_s", "decode_s")),
    ]


def _by_ability(abilities: pd.DataFrame, place: str) -> list[str]:
    role = stats.roles(abilities)
    at = abilities.apply(tables.setting, axis=1).eq(place)
    rows = abilities[role.ne("method") | at]
    names = role[rows.index].map(tables.REFERENCES).fillna(rows["method"])
    wide = rows.assign(name=names).pivot_table(
        index=["level", "ability"], columns="name", values="accuracy"
    )
    counts = rows.groupby(["level", "ability"])["n_rows"].max()
    body = [
        [escape(ability), escape(level), f"{counts[level, ability]:,}"]
        + [percent(line[name]) for name in names.unique()]
        for (level, ability), line in wide.iterrows()
    ]
    return _table(["ability", "level", "rows", *map(escape, names.unique())], body, words=2)


def _examples(samples: pd.DataFrame) -> list[str]:
    """Rows whose parsed answer is not the full cache's, from the mildest compression on."""
    if not {"text", "answer", "question"} <= set(samples.columns):
        return []
    full = samples[stats.roles(samples).eq("full")].drop_duplicates("row")
    rows = samples[stats.roles(samples).eq("method")].merge(
        full[["row", "parsed", "text"]], on="row", suffixes=("", "_full")
    )
    changed = rows[rows["parsed"].fillna("").ne(rows["parsed_full"].fillna(""))]
    changed = changed.sort_values(["ratio", "budget", "row"], kind="stable").drop_duplicates("row")
    body = [
        [escape(line["method"]), tables.setting(line)]
        + [escape(line[name], 60) for name in ("question", "answer", "text_full", "text")]
        for _, line in changed.head(EXAMPLES).iterrows()
    ]
    header = ["method", "ratio", "question", "right", "full cache said", "cell said"]
    return _table(header, body, words=len(header)) if body else []


def _provenance(meta: Mapping[str, object]) -> list[str]:
    items = [(name, value) for name, value in _flat(meta) if name not in SPOKEN_FOR]
    body = [[escape(name), escape(value, 300)] for name, value in items]
    return _table(["what", "value"], body, words=2)


def _flat(meta: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in meta.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
