"""The files a run leaves: tables, the summary and the pictures, each written whole or not.

Takes the samples frame and what is known about the run; must not know of tensors, lmms-eval, Hydra
or wandb. A file is written beside its place and then renamed, so a crash leaves the earlier one.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from harness import stats
from harness.report import heatmap, plots, summary, tables


def write(samples: pd.DataFrame, folder: Path, meta: Mapping[str, object]) -> dict[str, Path]:
    """Write samples, cells, abilities and means as parquet, summary.md and the pictures.

    One (model, task, protocol) group gives curve.png, several one
    curve-<model>-<task>-<protocol>.png each and another for the mean of each group of tasks. A
    task whose rows form a grid of length and depth gives heatmap-<task>.png as well.

    Args:
        samples: a row a cell and question row.
        folder: where the files go; made if it is not there.
        meta: what is known about the run: question, name, caveat (a sentence on what the model or
            data is), and provenance such as command, versions, seed, machine; nested as you like.

    Returns:
        The tables by name, "summary", and the pictures by their file name without .png.

    Raises:
        ValueError: a samples frame that `stats.summarise` refuses; nothing is written then.
        OSError: the folder cannot be written.
    """
    cells, abilities = stats.summarise(samples), stats.abilities(samples)
    means = stats.means(cells)
    curves = _curves(cells, "curve")
    averages = _curves(means, "curve-mean") if len(means) else {}
    grids = _grids(samples)
    text = summary.text(
        samples,
        cells,
        abilities,
        meta,
        [f"{name}.png" for name in curves],
        {rows["task"].iloc[0]: f"{name}.png" for name, rows in averages.items()},
        {task: f"{name}.png" for name, rows in grids.items() for task in rows["task"].unique()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    frames = {"samples": samples, "cells": cells, "abilities": abilities}
    paths = _write_tables(folder, frames | ({"means": means} if len(means) else {}))
    drawn = _draw(folder, curves | averages, plots.curve) | _draw(folder, grids, heatmap.heatmap)
    paths["summary"] = folder / "summary.md"
    with replacing(paths["summary"]) as part:
        part.write_text(text, encoding="utf-8")
    _remove_stale(folder, {*paths.values(), *drawn.values()})
    return paths | drawn


def _write_tables(folder: Path, frames: Mapping[str, pd.DataFrame]) -> dict[str, Path]:
    paths = {name: folder / f"{name}.parquet" for name in frames}
    for name, frame in frames.items():
        with replacing(paths[name]) as part:
            frame.to_parquet(part, index=False)
    return paths


def _draw(
    folder: Path,
    frames: Mapping[str, pd.DataFrame],
    picture: Callable[[pd.DataFrame, Path], None],
) -> dict[str, Path]:
    paths = {name: folder / f"{name}.png" for name in frames}
    for name, frame in frames.items():
        with replacing(paths[name]) as part:
            picture(frame, part)
    return paths


def _remove_stale(folder: Path, written: set[Path]) -> None:
    """Files of an earlier report of this folder that this one has no place for."""
    ours = {folder / "curve.png", folder / "means.parquet"}
    ours |= {*folder.glob("curve-*.png"), *folder.glob("heatmap-*.png")}
    for stale in ours - written:
        stale.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` when the block ends well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _curves(cells: pd.DataFrame, stem: str) -> dict[str, pd.DataFrame]:
    """Names of pictures, each of one (model, task, protocol), and what they show."""
    parts = dict(tables.groups(cells))
    if len(parts) == 1:
        return {stem: cells}
    names: dict[str, pd.DataFrame] = {}
    for (model, task, protocol), rows in parts.items():
        name = "-".join([stem, *(_plain(part) for part in (tables.short(model), task, protocol))])
        twins = sum(other == name or other.startswith(f"{name}~") for other in names)
        names[f"{name}~{twins + 1}" if twins else name] = rows
    return names


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
