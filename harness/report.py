"""The files a run leaves: three tables, the summary and the picture, each written whole or not.

Takes the samples frame and what is known about the run; must not know of tensors, lmms-eval, Hydra
or wandb. A file is written beside its place and then renamed, so a crash leaves the earlier one.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from harness import plots, stats, summary, tables
from harness.tables import console_table

__all__ = ["console_table", "write"]


def write(samples: pd.DataFrame, folder: Path, meta: Mapping[str, object]) -> dict[str, Path]:
    """Write samples, cells and abilities as parquet, summary.md and curve.png.

    Frames of several (model, task, protocol) groups give one curve-<model>-<task>-<protocol>.png
    each and no curve.png.

    Args:
        samples: a row a cell and question row.
        folder: where the files go; made if it is not there.
        meta: what is known about the run: question, name, caveat (a sentence on what the model or
            data is), and provenance such as command, versions, seed, machine; nested as you like.

    Returns:
        "samples", "cells", "abilities", "summary" and the curves by their file name without .png.

    Raises:
        ValueError: a samples frame that `stats.summarise` refuses; nothing is written then.
        OSError: the folder cannot be written.
    """
    cells, abilities = stats.summarise(samples), stats.abilities(samples)
    groups = [rows for _, rows in tables.groups(cells)]
    curves = {name: folder / f"{name}.png" for name in _curve_names(cells)}
    text = summary.markdown(samples, cells, abilities, meta, [p.name for p in curves.values()])
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for name, table in {"samples": samples, "cells": cells, "abilities": abilities}.items():
        paths[name] = folder / f"{name}.parquet"
        with replacing(paths[name]) as part:
            table.to_parquet(part, index=False)
    for path, group in zip(curves.values(), groups, strict=True):
        with replacing(path) as part:
            plots.curve(group, part)
    paths["summary"] = folder / "summary.md"
    with replacing(paths["summary"]) as part:
        part.write_text(text, encoding="utf-8")
    ours = {folder / "curve.png", *folder.glob("curve-*.png")}
    for stale in ours - set(curves.values()):
        stale.unlink(missing_ok=True)
    return paths | curves


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` when the block ends well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _curve_names(cells: pd.DataFrame) -> list[str]:
    keys = [key for key, _ in tables.groups(cells)]
    if len(keys) == 1:
        return ["curve"]
    names: list[str] = []
    for model, task, protocol in keys:
        parts = (tables.short(model), task, protocol)
        name = "-".join(["curve", *(re.sub(r"[^\w.]+", "_", part) for part in parts)])
        twins = sum(other == name or other.startswith(f"{name}~") for other in names)
        names.append(f"{name}~{twins + 1}" if twins else name)
    return names
