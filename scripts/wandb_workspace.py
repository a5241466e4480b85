"""Lay out a Weights & Biases project: accuracy against the ratio by method, ablation, answers.

    python -m scripts.wandb_workspace --entity ENTITY --project PROJECT
    python -m scripts.wandb_workspace --entity ENTITY --project PROJECT --print

The first saves the layout as a new view of the project and prints its address; the second needs no
network and no key, and prints the layout as JSON. Charts name the metrics and tables that
harness/tracking logs, for each label in conf/method; a method that a run lacks has no line. A chart
shows the lines of every run that is switched on at the left: one run at a time reads best.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import requests
import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from harness.errors import UserError
from harness.stats.plan import Plan
from harness.tracking import keys, session

NAME = "evictbench"
METHODS = Path(__file__).resolve().parents[1] / "conf" / "method"
CONTRASTS = (
    "ema+adaptive - mean+none", "ema - mean", "avg - none", "adaptive - none", "adaptive - avg",
    "relative - none", "relative - adaptive",
)  # fmt: skip
X = {keys.RATIO: "evicted fraction of the cache", keys.BUDGET: "kept tokens a head"}
COMMAND = "scripts.wandb_workspace"


def build(entity: str, project: str, labels: Iterable[str], method: str) -> ws.Workspace:
    """The workspace; nothing is sent.

    Args:
        entity, project: where it will be saved.
        labels: the methods with a line, as the tables call them.
        method: the one whose lines are shown with their intervals.
    """
    names = list(keys.names(labels).values())
    (own,) = keys.names([method]).values()
    sections = [
        ws.Section(
            name="Accuracy against ratio, by method",
            panels=[
                _scores("Accuracy", names, keys.RATIO),
                _interval(f"{method}: accuracy, 95 % interval", keys.ACCURACY, own, keys.RATIO),
            ],
        ),
        ws.Section(
            name="Ablation of the smoothing",
            panels=[_effects("Effects on accuracy", keys.RATIO), _table("ablation")],
        ),
        ws.Section(name="Answers", panels=[_table(keys.SAMPLES), _table(keys.FLIPS)]),
        ws.Section(
            name="Verdicts and differences from the full cache",
            panels=[
                _table("verdicts"),
                _table("contrasts"),
                _differences("Difference from the full cache", names, keys.RATIO),
                _interval(f"{method}: difference, 95 % interval", keys.DIFFERENCE, own, keys.RATIO),
                _table("comparisons"),
            ],
        ),
        ws.Section(
            name="Tables", panels=[_table(name) for name in ("cells", "abilities", "means")]
        ),
        ws.Section(
            name="Pictures",
            panels=[wr.MediaBrowser(title=name, media_keys=[name]) for name in keys.PICTURES],
        ),
        ws.Section(
            name="Vacuous: no scored token came from a compacted cache",
            panels=[_lines("Repeats the full cache", [keys.VACUOUS], names, keys.RATIO)],
        ),
        ws.Section(
            name="Against an absolute budget",
            panels=[
                _scores("Accuracy", names, keys.BUDGET),
                _differences("Difference from the full cache", names, keys.BUDGET),
                _effects("Effects on accuracy", keys.BUDGET),
                _lines("Vacuous", [keys.VACUOUS], names, keys.BUDGET),
            ],
        ),
    ]
    for place, section in enumerate(sections):
        section.is_open = place < 4
        section.layout_settings = ws.SectionLayoutSettings(columns=2, rows=2)
        for number, panel in enumerate(section.panels):
            panel._id = f"{NAME}-{place}-{number}"  # a random one otherwise: no two prints alike
    columns = [f"summary:{name}" for name in (keys.VERDICT, keys.SMOOTHING)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        runset_settings=ws.RunsetSettings(pinned_columns=["run:displayName", *columns]),
    )


def _lines(
    title: str, kinds: Sequence[str], names: Iterable[str], axis: str, *more: str
) -> wr.LinePlot:
    return wr.LinePlot(
        title=title,
        x=axis,
        y=[*(keys.metric(kind, name, axis) for name in names for kind in kinds), *more],
        title_x=X[axis],
        smoothing_type="none",
    )


def _scores(title: str, names: Iterable[str], axis: str) -> wr.LinePlot:
    return _lines(title, keys.ACCURACY[:1], names, axis, *_references(axis))


def _differences(title: str, names: Iterable[str], axis: str) -> wr.LinePlot:
    return _lines(title, keys.DIFFERENCE[:1], names, axis)


def _effects(title: str, axis: str) -> wr.LinePlot:
    return _lines(title, keys.ABLATION[:1], map(keys.contrast, CONTRASTS), axis)


def _interval(title: str, kinds: Sequence[str], name: str, axis: str) -> wr.LinePlot:
    more = _references(axis) if kinds == keys.ACCURACY else []
    return _lines(title, kinds, [name], axis, *more)


def _references(axis: str) -> list[str]:
    return [keys.metric(keys.REFERENCE, name, axis) for name in keys.REFERENCES.values()]


def _table(name: str) -> wr.WeavePanelSummaryTable:
    return wr.WeavePanelSummaryTable(table_name=name)


def text(workspace: ws.Workspace) -> str:
    """The workspace as JSON, as it would be saved; the same for the same arguments."""
    return json.dumps(workspace._spec, indent=2, sort_keys=True)


def save(workspace: ws.Workspace) -> str:
    """Save as a new view.

    Returns:
        Its address.

    Raises:
        UserError: no key is known, or the server cannot be reached or refuses.
    """
    if not wandb.api.api_key:
        raise UserError(
            f"{COMMAND} saves to Weights & Biases and no key is known: {session.LOG_IN}, or print "
            "the layout with --print."
        )
    session.reach(COMMAND, "print the layout with --print.")
    try:
        workspace.save()
        return str(workspace.url)
    except (wandb.Error, requests.RequestException) as error:
        place = f"{workspace.entity}/{workspace.project}"
        raise UserError(
            f"{COMMAND} cannot save to {place} ({error}): check the names and that your key may "
            "write there."
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, print or save; 2 where something is missing."""
    about, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog=f"python -m {COMMAND}", description=about, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", default="evictbench", help="default: %(default)s")
    parser.add_argument(
        "--methods", nargs="+", metavar="LABEL", help="methods with a line; default: conf/method"
    )
    parser.add_argument("--print", action="store_true", help="print the layout, save nothing")
    args = parser.parse_args(arguments)
    known = sorted(path.stem for path in METHODS.glob("*.yaml") if path.stem != "full")
    workspace = build(args.entity, args.project, args.methods or known, Plan().method)
    try:
        print(text(workspace) if args.print else save(workspace))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
