"""One (model, task, protocol) group of a study: its frames, pictures, words and identity.

Must not know wandb.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from harness import stats
from harness.report import tables
from harness.report.study import Study
from harness.tracking import keys

OWN = ("samples", "cells", "comparisons", "ablation", "verdicts", "contrasts", "abilities")
BESIDE = ["lower", "upper", "p_noninferior_holm", "detectable"]  # told beside a verdict
PLACE = [*stats.GROUP, "method", "ratio", "budget"]


def groups(study: Study) -> Iterator[Study]:
    """The study of each group alone, in order of appearance.

    `means` keeps the means that the group's task is part of.
    """
    for (model, task, protocol), cells in tables.groups(study.cells):
        own = {"model": model, "task": task, "protocol": protocol}
        above = own | {"task": cells["group"].iloc[0]}
        frames = {name: _where(getattr(study, name), own) for name in OWN}
        yield dataclasses.replace(study, **frames, means=_where(study.means, above))


def _where(frame: pd.DataFrame, values: dict[str, str]) -> pd.DataFrame:
    if frame.empty:
        return frame
    chosen = pd.Series(True, index=frame.index)
    for column, value in values.items():
        chosen &= frame[column].eq(value).fillna(False).astype(bool)
    return frame[chosen]


def key(group: Study) -> tuple[str, str, str]:
    """Model (without folders), task and protocol."""
    model, task, protocol = group.cells.iloc[0][stats.GROUP]
    return tables.short(model), str(task), str(protocol)


def tags(group: Study) -> list[str]:
    """Model, task, protocol, and "vacuous" where every compressed cell is."""
    rows = tables.compressed(group.cells)
    empty = len(rows) > 0 and bool(rows["vacuous"].all())
    return [*key(group), *([keys.VACUOUS] if empty else [])]


def identity(group: Study, sweep: str) -> str:
    """16 hex digits, the same for the same answers and the same analysis of them.

    Times are left out: they differ from one computation to the next.
    """
    told = [sweep, *key(group)]
    told += [_text(getattr(group, name)) for name in keys.FRAMES]
    told.append(_text(group.samples.reindex(columns=["cell_key", "row", "text", "score"])))
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]


def _text(frame: pd.DataFrame) -> str:
    return str(frame.drop(columns=stats.TIMINGS, errors="ignore").to_json(orient="split"))


def notes(group: Study) -> str:
    """What was asked and what came out, a line each."""
    failed = tables.failures(group.cells)
    lines = [group.question, group.caveat, *group.told]
    lines += [f"{tables.FAILED_NOTE}: {failed}."] if failed else []
    for _, row in group.verdicts.iterrows():
        place = f"{row['method']} at {tables.setting(row)}"
        lines.append(f"{place}: {row['verdict']}. {row['reason']}")
    for _, row in group.contrasts.iterrows():
        place = f"{row['label']} against {row['against']} at {tables.setting(row)}"
        lines.append(f"{place}: {row['effect']}. {row['reason']}")
    return "\n".join(line for line in lines if line)


def scalars(group: Study) -> dict[str, object]:
    """The run's summary: every verdict in one line, and its numbers by setting.

    `verdict` and `smoothing` name all settings ("0.5 supported, 0.9 cannot tell");
    `verdict_at/<setting>/<column>` has the columns of the verdicts and the tests beside them.
    """
    if group.verdicts.empty:
        return {}
    found: dict[str, object] = {}
    rows = group.verdicts
    for name in (keys.VERDICT, keys.SMOOTHING):
        asked = rows[rows[name].notna()]
        told = [f"{tables.setting(row)} {row[name]}" for _, row in asked.iterrows()]
        found |= {name: ", ".join(told)} if told else {}
    if len(group.comparisons):
        more = [name for name in BESIDE if name in group.comparisons and name not in rows]
        rows = rows.merge(group.comparisons[[*PLACE, *more]], on=PLACE, how="left")
    for _, row in rows.iterrows():
        place = f"verdict_at/{setting(row)}"
        told = row.drop([*PLACE, "cell_key"], errors="ignore")
        found |= {f"{place}/{column}": value for column, value in told.items()}
    return found


def setting(row: pd.Series) -> str:
    """A setting as part of a name: "ratio_0_9", "budget_64"."""
    axis = keys.RATIO if pd.notna(row["ratio"]) else keys.BUDGET
    return f"{axis}_{keys.plain(f'{row[axis]:g}')}"


def pictures(study: Study, folder: Path) -> Iterator[dict[str, Path]]:
    """The pictures of each group that stand in the folder, under `keys.PICTURES`.

    Their names are those that `harness.report.files` gives them.
    """
    curves, means = _stems("curve", study.cells), _stems("curve-mean", study.means)
    for group in groups(study):
        model, task, protocol = group.cells.iloc[0][stats.GROUP]
        above = group.cells["group"].iloc[0]
        owner = task if pd.isna(above) else above
        stems = {
            keys.CURVE: curves[model, task, protocol],
            keys.MEAN: means.get((model, owner, protocol), ""),
            keys.HEATMAP: _stem("heatmap", model, owner, protocol),
        }
        paths = {name: folder / f"{stem}.png" for name, stem in stems.items()}
        yield {name: path for name, path in paths.items() if path.is_file()}


def _stems(kind: str, cells: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """File names by group: the kind alone where there is one; a number follows one given before."""
    places = [place for place, _ in tables.groups(cells)] if len(cells) else []
    found: dict[tuple[str, str, str], str] = {}
    for place in places:
        name = _stem(kind, *place) if len(places) > 1 else kind
        twins = sum(other == name or other.startswith(f"{name}~") for other in found.values())
        found[place] = f"{name}~{twins + 1}" if twins else name
    return found


def _stem(kind: str, model: str, task: str, protocol: str) -> str:
    parts = (tables.short(model), task, protocol)
    return "-".join([kind, *(re.sub(r"[^\w.]+", "_", part) for part in parts)])
