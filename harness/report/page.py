"""report.html: the whole study on one page that needs nothing but itself.

Puts tables, figures, maps and answers into the template; must not know how each comes about. The
page's policy allows no request at all and no script but plotly and the figures, by their digests.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from harness import stats
from harness.records.atomic import replacing
from harness.report import charts, evidence, figures, page_tables, sizes, tables, words
from harness.report.headline import leads
from harness.report.study import Study

HERE = Path(__file__).parent
CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["toImage", "select2d", "lasso2d", "autoScale2d"],
}
SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)
WHOLE = 20_000  # characters of a foreign text that stand on the page at all


@dataclass(frozen=True)
class Plot:
    """A figure as plotly writes it, a heading, its width in pixels where that is fixed, and the
    least width it can be read at.
    """

    html: Markup
    title: str
    width: int | None
    least: int


@dataclass
class Scripts:
    """Digests of the scripts on the page, and a name for each figure."""

    digests: list[str] = field(default_factory=list)

    def add(self, source: str) -> Markup:
        """The source of a script, now allowed by the policy."""
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        self.digests.append(f"'sha256-{digest}'")
        return Markup(source)

    def plot(self, figure: go.Figure, title: str = "", least: int = 0) -> Plot:
        """The figure's HTML, its script allowed by the policy."""
        name = f"figure-{len(self.digests)}"
        html = figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=name, config=CONFIG,
            default_height=f"{figure.layout.height}px",
            default_width=f"{figure.layout.width}px" if figure.layout.width else "100%",
        )  # fmt: skip
        for source in SCRIPT.findall(html):
            self.add(source)
        return Plot(Markup(html), title, figure.layout.width, least)


def write(
    study: Study,
    path: Path,
    headline: Sequence[str],
    limits: Sequence[str] = (),
) -> None:
    """Write the page of a study, the same bytes for the same arguments.

    Args:
        study: all that is known.
        path: the file; its folder must be there.
        headline: the verdict in sentences, the first one carries the weight.
        limits: sentences on what the data does not say, before those of the study.

    Raises:
        OSError: the file cannot be written.
    """
    text = render(study, headline, limits)
    with replacing(path) as part:
        part.write_bytes(text.encode())


def render(
    study: Study,
    headline: Sequence[str],
    limits: Sequence[str] = (),
) -> str:
    """The page as text; see `write`."""
    scripts = Scripts()
    plotly = scripts.add(get_plotlyjs())
    parts = [
        _part(study, key, cells, scripts) | {"number": number}
        for number, (key, cells) in enumerate(tables.groups(study.cells), start=1)
    ]
    said = dict.fromkeys([*limits, *study.told])
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            study=study,
            headline=[re.sub(r"(?<=\d) %", f"{words.SPACE}%", text) for text in headline],
            verdicts=page_tables.verdicts(study),
            parts=parts,
            beside=page_tables.beside(study),
            glances=page_tables.glances(study),
            means=[plot for rows in _groups(study.means) for plot in _means(rows, scripts)],
            claims=None if study.claims.empty else page_tables.claims(study.claims),
            limits=[sentence for sentence in said if sentence],
            plan=page_tables.plan(study.plan),
            provenance=page_tables.provenance(study.provenance),
            css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            dark=figures.DARK,
            plotly=plotly,
            policy=" ".join(scripts.digests),
        )
    )


def environment() -> jinja2.Environment:
    """The templates, in which everything that comes from data is made visible and then escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else words.visible(value),
    )
    environment.filters |= {"cut": words.cut, "percent": words.percent}
    environment.tests["leading"] = leads
    environment.globals["whole"] = WHOLE
    return environment


def _part(
    study: Study,
    key: tuple[str, str, str],
    cells: pd.DataFrame,
    scripts: Scripts,
) -> dict[str, object]:
    """What the template shows of one (model, task, protocol) group."""
    model, task, protocol = key
    compared, effects = (stats.of(frame, key) for frame in (study.comparisons, study.ablation))
    rows = tables.compressed(cells)
    labels = dict(zip(rows["cell_key"], rows["label"], strict=True))
    focus = evidence.worst(cells, compared, study.plan.method)
    margin = study.plan.margin
    heatmap = charts.heatmap(cells, stats.of(study.abilities, key), focus)
    forest = charts.forest(effects, margin)
    fell = stats.of(study.weights, key)
    return {
        "name": f"{tables.short(model)} on {task}, protocol {protocol}",
        "size": f"{cells['n_questions'].max():,} questions, {cells['n_rows'].max():,} rows",
        "metric": str(cells["metric"].iloc[0]),
        "vacuous": int(rows["vacuous"].sum()),
        "curves": [scripts.plot(f, title) for title, f in figures.curves(cells, compared)],
        "sizes": [
            scripts.plot(f, title)
            for title, f in (figures.curves(cells, compared, True) if sizes.differ(cells) else ())
        ],
        "differences": [
            scripts.plot(f, title) for title, f in figures.differences(cells, compared, margin)
        ],
        "paired": None if compared.empty else page_tables.paired(compared, labels, study.plan),
        "heatmap": None if heatmap is None else scripts.plot(heatmap),
        "forest": None if forest is None else scripts.plot(forest, least=400),
        "ablation": None if effects.empty else page_tables.ablation(effects),
        "activity": page_tables.activity(cells),
        "weights": None if fell.empty else scripts.plot(charts.weights(fell), least=360),
        "evidence": evidence.evidence(study, key, cells),
    }


def _means(rows: pd.DataFrame, scripts: Scripts) -> Iterator[Plot]:
    nothing = pd.DataFrame()
    for title, figure in figures.curves(rows, nothing):
        first = rows.iloc[0]
        name = f"mean of the {rows['n_tasks'].max()} tasks of {first['task']}"
        yield scripts.plot(figure, f"{name}, protocol {first['protocol']}: {title}")


def _groups(frame: pd.DataFrame) -> list[pd.DataFrame]:
    return [] if frame.empty else [rows for _, rows in tables.groups(frame)]
