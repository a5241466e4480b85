"""The page and the Markdown of several runs side by side.

Lays out what `compare` makes of them; must not know files of a run or wandb.
"""

from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from harness.report import compare, figures, markdown, page
from harness.report.compare import Part
from harness.report.page_tables import Ruled, Table
from harness.report.tables import escape
from harness.report.verdict_tables import Rows


def render(found: Sequence[Part], tables: Sequence[Rows]) -> str:
    """The page as text, the same for the same runs; it asks for nothing but itself."""
    scripts = page.Scripts()
    plotly = scripts.add(get_plotlyjs())
    curves = [(part.label, _curves(part, scripts)) for part in found]
    return (
        page.environment()
        .get_template("compare.html.j2")
        .render(
            title=title(found),
            said=list(compare.said(found)),
            tables=[_table(rows) for rows in tables],
            curves=curves,
            css=Markup((page.HERE / "page.css").read_text(encoding="utf-8")),
            dark=figures.DARK,
            plotly=plotly,
            policy=" ".join(scripts.digests),
        )
    )


def title(found: Sequence[Part]) -> str:
    """What is compared."""
    names = list(dict.fromkeys(part.run for part in found))
    return f"{' and '.join(names)} side by side"


def text(found: Sequence[Part], tables: Sequence[Rows]) -> str:
    """The same in Markdown."""
    lines = [f"# {escape(title(found), 400)}", ""]
    for name, said in compare.said(found):
        lines += [f"**{escape(name, 200)}**: {escape(said, 4000)}", ""]
    for rows in tables:
        body = [[escape(cell, 200) for cell in line] for line in rows.body]
        lines += [f"## {escape(rows.title, 200)}", ""]
        lines += markdown.table(list(map(escape, rows.header)), body, words=2)
        lines += ["", *(escape(note, 400) for note in rows.notes), ""]
    return "\n".join(lines)


def _curves(part: Part, scripts: page.Scripts) -> list[page.Plot]:
    cells = part.of(part.study.cells)
    found = figures.curves(cells, part.of(part.study.comparisons))
    return [scripts.plot(figure, name) for name, figure in found]


def _table(rows: Rows) -> Ruled:
    words = tuple(
        place for place, name in enumerate(rows.header) if name in ("Losses compared", "Agree?")
    )
    return Ruled(Table(rows.title, rows.header, rows.body, text=words, heads=2), rows.notes)


def frames(found: Sequence[Part]) -> dict[str, pd.DataFrame]:
    """The tables behind it: losses, between, verdicts."""
    return {
        "losses": compare.losses(found),
        "between": compare.between(found),
        "verdicts": compare.verdicts(found),
    }


def rows(made: dict[str, pd.DataFrame]) -> list[Rows]:
    """The tables that hold something, as rows of text."""
    shown = {
        "verdicts": compare.verdict_rows,
        "losses": compare.loss_rows,
        "between": compare.between_rows,
    }
    return [lay(made[name]) for name, lay in shown.items() if len(made[name])]
