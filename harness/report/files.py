"""The files a run leaves: tables, the summary and the pictures.

Takes the samples frame and what is known about the run; must not know of tensors, lmms-eval, Hydra
or wandb. All of them are written beside their places and then renamed, so that whatever goes wrong
leaves the earlier ones.
"""

import os
import re
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import pandas as pd

from harness.records.atomic import STAGE
from harness.report import answer, field, glance, heatmap, page, plots, sizes, summary, tables
from harness.report.headline import headline
from harness.report.study import Study

T = TypeVar("T")


def write(study: Study, folder: Path, but: Collection[str] = ()) -> dict[str, Path]:
    """Write the tables as parquet, summary.md, answer.md, report.html and the pictures.

    One (model, task, protocol) group gives curve.png, several one
    curve-<model>-<task>-<protocol>.png each and another for the mean of each group of tasks. A
    task whose rows form a grid of length and depth gives heatmap-<task>.png as well, a task of
    eight methods or more field-<model>-<task>.png, and one with cells in few bits bytes.png, or
    bytes-<model>-<task>-<protocol>.png.

    Args:
        study: the run, as `harness.report.build` makes it.
        folder: where the files go; made if it is not there.
        but: tables that stay as they are.

    Returns:
        The tables by name, "summary", "answer", "report", and the pictures by their file name
        without .png.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stage = tempfile.TemporaryDirectory(prefix=STAGE, dir=folder, ignore_cleanup_errors=True)
    with stage as name:
        made = _write(study, Path(name))
        for table in but:
            made.pop(table).unlink()
        for path in made.values():
            os.replace(path, folder / path.name)
    paths = {name: folder / path.name for name, path in made.items()}
    _remove_stale(folder, {*paths.values()})
    return paths


def _write(study: Study, folder: Path) -> dict[str, Path]:
    """Write every file into an empty folder."""
    samples, cells, abilities, means = study.samples, study.cells, study.abilities, study.means
    curves = _curves(cells, "curve")
    averages = _curves(means, "curve-mean") if len(means) else {}
    grids = _grids(samples)
    sized = {name: part for name, part in _curves(cells, "bytes").items() if sizes.differ(part)}
    seen = list(glance.glances(study))
    fields = _fields(seen)
    drawn_as = {id(one): f"{name}.png" for name, one in fields.items()}
    text = summary.text(
        samples,
        cells,
        abilities,
        _spoken(study),
        [f"{name}.png" for name in curves],
        _of_groups(averages),
        _of_groups(grids),
        _of_groups(sized),
        [(glance.rows(one), drawn_as.get(id(one), "")) for one in seen],
    )
    frames = {"samples": samples, "cells": cells, "abilities": abilities}
    frames |= {"comparisons": study.comparisons, "ablation": study.ablation}
    frames |= {"verdicts": study.verdicts, "contrasts": study.contrasts} | (
        {"means": means} if len(means) else {}
    )
    paths = _write_tables(folder, frames)
    drawn = _draw(folder, curves | averages, plots.curve) | _draw(folder, grids, heatmap.heatmap)
    drawn |= _draw(folder, sized, plots.bytes_curve) | _draw(folder, fields, field.field)
    limits = list(answer.limits(study))
    for name, told in (("summary", text), ("answer", answer.text(study, limits))):
        paths[name] = folder / f"{name}.md"
        paths[name].write_text(told, encoding="utf-8")
    paths["report"] = folder / "report.html"
    page.write(study, paths["report"], headline(study), limits)
    return paths | drawn


def _spoken(study: Study) -> dict[str, object]:
    """What the summary tells about the run."""
    facts: dict[str, object] = {"name": study.name, "question": study.question}
    facts |= {"caveat": study.warning, "told": study.told}
    return {k: v for k, v in facts.items() if v} | {**study.provenance, **study.session}


def _write_tables(folder: Path, frames: Mapping[str, pd.DataFrame]) -> dict[str, Path]:
    paths = {name: folder / f"{name}.parquet" for name in frames}
    for name, frame in frames.items():
        frame.to_parquet(paths[name], index=False)
    return paths


def _draw(
    folder: Path, shown: Mapping[str, T], picture: Callable[[T, Path], None]
) -> dict[str, Path]:
    paths = {name: folder / f"{name}.png" for name in shown}
    for name, what in shown.items():
        picture(what, paths[name])
    return paths


def _remove_stale(folder: Path, written: set[Path]) -> None:
    """Files of an earlier report of this folder that this one has no place for."""
    ours = {folder / "curve.png", folder / "bytes.png", folder / "means.parquet"}
    ours |= {
        path
        for name in ("curve", "bytes", "heatmap", "field")
        for path in folder.glob(f"{name}-*.png")
    }
    for stale in ours - written:
        stale.unlink(missing_ok=True)


def _curves(cells: pd.DataFrame, stem: str) -> dict[str, pd.DataFrame]:
    """Names of pictures, each of one (model, task, protocol), and what they show."""
    parts = dict(tables.groups(cells))
    if len(parts) == 1:
        return {stem: cells}
    names: dict[str, pd.DataFrame] = {}
    for (model, task, protocol), rows in parts.items():
        names[_free(names, stem, tables.short(model), task, protocol)] = rows
    return names


def _fields(seen: Collection[glance.Glance]) -> dict[str, glance.Glance]:
    """Names of the pictures of many methods, and what they show."""
    names: dict[str, glance.Glance] = {}
    for one in filter(field.is_wide, seen):
        names[_free(names, "field", tables.short(one.model), one.task)] = one
    return names


def _free(taken: Collection[str], stem: str, *parts: str) -> str:
    """A file name of these parts that is not taken yet."""
    name = "-".join([stem, *map(_plain, parts)])
    twins = sum(other == name or other.startswith(f"{name}~") for other in taken)
    return f"{name}~{twins + 1}" if twins else name


def _of_groups(pictures: Mapping[str, pd.DataFrame]) -> dict[tuple[str, str, str], str]:
    """The file of each (model, task, protocol) that pictures show."""
    return {key: f"{name}.png" for name, rows in pictures.items() for key, _ in tables.groups(rows)}


def _grids(samples: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Names of heatmaps and their rows: tasks whose kinds of row are a length and a depth.

    The lengths of one group of tasks share a picture.
    """
    if not {"category", "l2_category"} <= set(samples.columns):
        return {}
    owner = samples["task"] if "group" not in samples else samples["group"].fillna(samples["task"])
    found: dict[str, pd.DataFrame] = {}
    for (model, name, protocol), rows in samples.groupby(["model", owner, "protocol"], sort=False):
        kinds = rows[["category", "l2_category"]].drop_duplicates()
        numbers = kinds.apply(pd.to_numeric, errors="coerce")
        if numbers.notna().all(axis=None) and numbers["l2_category"].nunique() > 1:
            parts = (tables.short(model), str(name), protocol)
            found["-".join(["heatmap", *map(_plain, parts)])] = rows
    return found


def _plain(text: str) -> str:
    return re.sub(r"[^\w.]+", "_", text)
