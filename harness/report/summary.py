"""The text of a run: what was asked, what the tables can say (`honesty`), the tables themselves.

Turns a samples frame and its cells into Markdown. Knows no files and draws nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from harness import stats
from harness.report import honesty, markdown, overview, sizes, tables
from harness.report.tables import escape, percent
from harness.report.verdict_tables import Rows

SHARED = (
    "score and decode: milliseconds a row, those of the batch shared evenly among the cells that "
    "were decoded together; they add up to the sweep's time and are not what a method costs by "
    "itself."
)
HOST = (
    "host: KiB of the prompt's entries on the host, which the cache's KiB and share leave out. "
    "fetched: KiB that a pass brings from there, those of an answer's own entries among them."
)
EXAMPLES = 10
SHOWN = {
    "row", "method", "control", "ratio", "budget", "failed", "parsed", "text", "answer", "question",
}  # fmt: skip
SENTENCE = 10_000  # characters
SPOKEN_FOR = {"question", "name", "caveat", "told"}  # keys of meta that stand in the text itself


def text(
    samples: pd.DataFrame,
    cells: pd.DataFrame,
    abilities: pd.DataFrame,
    meta: Mapping[str, object],
    curves: Iterable[str],
    means: Mapping[tuple[str, str, str], str] | None = None,
    grids: Mapping[tuple[str, str, str], str] | None = None,
    sizes: Mapping[tuple[str, str, str], str] | None = None,
    glances: Sequence[tuple[Rows, str]] = (),
) -> str:
    """The whole summary.

    Args:
        samples: a row a cell and question row.
        cells: `stats.summarise(samples)`.
        abilities: `stats.abilities(samples)`.
        meta: `question`, `name`, `caveat` (a sentence about the model or data) and `told` (others
            about the settings) are spoken; all other entries, nested ones with dotted names, are
            listed as provenance.
        curves: file names of the pictures, one a (model, task, protocol) group.
        means: file name of the curve of each group of tasks, by model, group and protocol.
        grids: file name of the heatmap of each (model, task, protocol) that has one.
        sizes: that of the score against bytes, where some cells are stored in few bits.
        glances: for each model and task its table of methods, and the file name of its picture or
            nothing.
    """
    lines = [f"# {escape(meta.get('name', 'Accuracy against cache compression'))}", ""]
    if "question" in meta:
        lines += [f"**Asked:** {escape(meta['question'], 400)}", ""]
    parts = list(tables.groups(cells))
    if len(parts) > 1:
        lines += overview.section(cells, stats.means(cells), focus(cells), means or {})
        lines += _at_a_glance(glances, "##")
    for (key, group), picture in zip(parts, curves, strict=True):
        model, task, protocol = map(escape, key)
        if len(parts) > 1:
            lines += [f"## {model} on {task}, protocol {protocol}", ""]
        own = stats.of(samples, key)
        kinds = stats.of(abilities, key)
        lines += [
            " ".join(escape(said, SENTENCE) for said in honesty.sentences(own, group, meta)),
            "",
        ]
        lines += [escape(honesty.window(group), SENTENCE), *_reading(group), ""]
        lines += [f"![score against compression]({picture})", ""]
        if key in (sizes or {}):
            lines += [f"![score against bytes]({(sizes or {})[key]})", ""]
        if key in (grids or {}):
            lines += [f"![score by length and depth]({(grids or {})[key]})", ""]
        if len(parts) == 1:
            lines += _at_a_glance(glances, "###")
        lines += list(_sections(own, group, kinds))
    return "\n".join([*lines, "## Provenance", "", *_provenance(meta), ""])


def _sections(samples: pd.DataFrame, cells: pd.DataFrame, abilities: pd.DataFrame) -> Iterator[str]:
    metric = escape(cells["metric"].iloc[0])
    title = f"{metric[0].upper()}{metric[1:]} in percent, with 95 % intervals over questions"
    yield from _titled(title, markdown.scores(cells))
    if (cells["n_rows"] > cells["n_questions"]).any():
        yield from _titled(
            "Circular accuracy in percent (a question counts when all its rotations are right)",
            markdown.pivot(cells, lambda cell: percent(cell["circular_accuracy"]), cells),
        )
    yield from _titled(
        "Answers that differ from the full cache's on the same row, in percent",
        markdown.pivot(cells, lambda cell: percent(cell["flip_rate"])),
    )
    yield from _titled(
        "Measured cells", [*_measured(cells), *(["", SHARED] if _timed(cells) else [])]
    )
    if not abilities.empty:
        place = focus(cells)
        yield from _titled(
            f"Accuracy by ability in percent, methods at {place}", _by_ability(abilities, place)
        )
    examples = _examples(samples)
    if examples:
        yield from _titled("Answers that eviction changed, the first few", examples)


def _at_a_glance(glances: Sequence[tuple[Rows, str]], level: str) -> Iterator[str]:
    """A table a model and task, with a heading of its own where there are several."""
    if glances:
        yield from (f"{level} Methods at a glance", "")
    for found, picture in glances:
        if len(glances) > 1:
            yield from (f"{level}# {escape(found.title)}", "")
        if picture:
            yield from (f"![methods at a glance]({picture})", "")
        body = [[escape(text) for text in line] for line in found.body]
        yield from markdown.table([escape(name) for name in found.header], body)
        yield from (line for note in found.notes for line in ("", escape(note, SENTENCE)))
        yield ""


def _titled(title: str, table: list[str]) -> Iterator[str]:
    yield from (f"### {title}", "", *table, "")


def _reading(cells: pd.DataFrame) -> Iterator[str]:
    """Best and worst method at the setting in focus, of cells that are not vacuous and keep no more
    than was asked for.
    """
    rows, place = tables.compressed(cells), focus(cells)
    there = pd.Series(tables.settings(rows), index=rows.index, dtype=str) == place
    rows = rows[~rows["vacuous"].astype(bool) & there & ~stats.keeps_more(rows)]
    if rows["accuracy"].dropna().empty:
        return
    best, worst = (rows.loc[rows["accuracy"].agg(which)] for which in ("idxmax", "idxmin"))
    ranks = f"best {_named(best)}, worst {_named(worst)}"
    if len(rows) == 1:
        ranks = _named(best)
    elif best["accuracy"] == worst["accuracy"]:
        ranks = f"every method {percent(best['accuracy'])} %"
    yield "".join(
        [
            f"\nAt {place}: ",
            ranks,
            *(
                f", {cell['label']} {percent(cell['accuracy'])} %"
                for _, cell in tables.references(cells).iterrows()
            ),
            ".",
        ]
    )


def _named(cell: pd.Series) -> str:
    return f"{escape(cell['label'])} {percent(cell['accuracy'])} % {markdown.brackets(cell)}"


def focus(cells: pd.DataFrame) -> str:
    """The one setting shown in detail: ratio 0.9 where it was run, else the strongest there is."""
    rows = tables.compressed(cells)[["ratio", "budget"]]
    rows = rows.sort_values(["ratio", "budget"], ascending=[True, False], na_position="first")
    names = tables.settings(rows)
    return "0.9" if "0.9" in names else (names[-1] if names else "")


def _measured(cells: pd.DataFrame) -> list[str]:
    header = [
        "method", "ratio", "cache KiB", "of full %", "kept %", "image %", "text %",
        "exposed tokens", "unparsed %", "window",
    ]  # fmt: skip
    pictured = cells["kept_fraction_image"].notna().any()
    header = [name for name in header if pictured or name not in ("image %", "text %")]
    twice = cells["unparsed_rate_other"].notna().any()
    header[-1:-1] = ["unparsed %, other reading"] if twice else []
    away = sizes.on_host(cells)
    header += ["host KiB", "fetched KiB"] if away else []
    header += ["score ms", "decode ms"] if _timed(cells) else []
    rows = pd.concat([tables.references(cells), tables.compressed(cells)])
    found = [_measures(cell, twice, pictured, away) for _, cell in rows.iterrows()]
    return markdown.table(header, found) + (["", HOST] if away else [])


def _timed(cells: pd.DataFrame) -> bool:
    """Published tables leave times out: they differ from run to run."""
    return set(stats.TIMINGS) <= set(cells.columns)


def _measures(cell: pd.Series, twice: bool, pictured: bool, away: bool) -> list[str]:
    parts = ("kept_fraction", "kept_fraction_image", "kept_fraction_text")[: 3 if pictured else 1]
    window = cell["window_effective"]
    return [
        escape(cell["label"]) + markdown.mark(cell),
        tables.setting(cell),
        f"{cell['cache_bytes'] / 1024:,.1f}",
        percent(cell["cache_bytes"] / cell["full_cache_bytes"]),
        *(percent(cell[name]) for name in parts),
        f"{cell['exposed_tokens']:.2f}",
        percent(cell["unparsed_rate"]),
        *([percent(cell["unparsed_rate_other"])] if twice else []),
        "-" if pd.isna(window) else f"{window:.1f}",
        *(_fetched(cell) if away else []),
        *(
            f"{1000 * cell[name] / cell['n_rows']:.2f}"
            for name in ("score_s", "decode_s")
            if name in cell
        ),
    ]


def _fetched(cell: pd.Series) -> list[str]:
    """KiB on the host, and KiB that a pass fetches; dashes where all is here."""
    if pd.isna(cell["host_bytes"]):
        return ["-", "-"]
    return [f"{cell[name] / 1024:,.1f}" for name in ("host_bytes", "fetched_bytes")]


def _by_ability(abilities: pd.DataFrame, place: str) -> list[str]:
    role = stats.roles(abilities)
    at = pd.Series(tables.settings(abilities), index=abilities.index).eq(place)
    rows = abilities[role.ne("method") | at]
    names = role[rows.index].map(tables.REFERENCES).fillna(rows["method"])
    parts = rows.assign(name=names).groupby(["level", "ability", "name"])
    wide = parts["accuracy"].mean().unstack("name")
    counts = rows.groupby(["level", "ability"])["n_rows"].max()
    body = [
        [escape(ability), escape(level), f"{counts[level, ability]:,}"]
        + [percent(line[name]) for name in names.unique()]
        for (level, ability), line in wide.iterrows()
    ]
    return markdown.table(["ability", "level", "rows", *map(escape, names.unique())], body, words=2)


def _examples(samples: pd.DataFrame) -> list[str]:
    """Rows whose parsed answer is not the full cache's, from the mildest compression on."""
    if not {"text", "answer", "question"} <= set(samples.columns):
        return []
    samples = samples[[name for name in samples if name in SHOWN]]
    role = stats.roles(samples)
    full = samples[role.eq("full")].drop_duplicates("row")
    rows = samples[role.eq("method")].merge(
        full[["row", "parsed", "text"]], on="row", suffixes=("", "_full")
    )
    changed = rows[rows["parsed"].fillna("").ne(rows["parsed_full"].fillna(""))]
    changed = changed[~stats.failed(changed)]
    changed = changed.sort_values(["ratio", "budget", "row"], kind="stable").drop_duplicates("row")
    body = [
        [escape(line["method"]), tables.setting(line)]
        + [escape(line[name], 60) for name in ("question", "answer", "text_full", "text")]
        for _, line in changed.head(EXAMPLES).iterrows()
    ]
    header = ["method", "ratio", "question", "right", "full cache said", "cell said"]
    return markdown.table(header, body, words=len(header)) if body else []


def _provenance(meta: Mapping[str, object]) -> list[str]:
    items = [(name, value) for name, value in tables.flat(meta) if name not in SPOKEN_FOR]
    body = [[escape(name), escape(value, 300)] for name, value in items]
    return markdown.table(["what", "value"], body, words=2)
