"""One run in Weights & Biases: the cells, a sample of answers with their images, the curve.

Offline unless asked otherwise. Everything wandb writes, table media and staged artifacts included,
goes under `<folder>/wandb`, so that `wandb sync` can upload it later from another machine. Must not
know of tensors, lmms-eval or Hydra.
"""

import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import wandb
from PIL import Image

from harness import stats
from harness.errors import UserError
from harness.report import summary, tables

Mode = Literal["offline", "online", "disabled"]
MODES: dict[str, Mode] = {"offline": "offline", "online": "online", "disabled": "disabled"}
SAMPLE_COLUMNS = [
    "task", "row", "question_id", "image", "category", "question", "answer", "method", "ratio",
    "text", "parsed", "score", "correct", "exposed_tokens", "kept_fraction",
]  # fmt: skip
REMEDY = "log in with `wandb login`, or use wandb.mode=offline and `wandb sync` later."
Picture = Callable[[str, int], Image.Image | None]


def log_run(
    samples: pd.DataFrame,
    cells: pd.DataFrame,
    images: Picture,
    config: Mapping[str, object],
    folder: Path,
    mode: str,
    group: str,
    name: str,
    *,
    project: str = "evictbench",
    questions: int = 50,
    ratio: float | None = None,
) -> Path | None:
    """Log a finished sweep as one wandb run.

    History holds one step: `accuracy/<method>@<ratio>` (fractions; a vacuous cell goes under
    `vacuous/` instead, for it is no result), the tables `cells` and `samples`, and the pictures
    `curve*` that stand in the folder.

    Args:
        samples: a row a cell and question row.
        cells: `stats.summarise(samples)`.
        images: the picture of a task's row (doc id), None where it has none; asked once a shown
            row.
        config: the job's settings.
        folder: the run folder.
        mode: "offline", "online" or "disabled".
        group: groups the runs of one sweep.
        name: the run's own name.
        project: wandb project.
        questions: the sample table shows up to this many, spread evenly, first rotations only.
        ratio: the sample table shows the references and every method here; by default 0.9 where it
            was run, else the strongest.

    Returns:
        The wandb run folder; None when disabled.

    Raises:
        UserError: an unknown mode, or wandb cannot go online.
    """
    if mode not in MODES:
        raise UserError(f"wandb.mode={mode!r} is unknown; choose one of {', '.join(MODES)}.")
    if mode == "disabled":
        return None
    place = summary.focus(cells) if ratio is None else f"{ratio:g}"
    with (
        _environment(folder.resolve(), offline=mode == "offline"),
        _run(config, folder, MODES[mode], project=project, group=group, name=name) as run,
    ):
        logged: dict[str, object] = {**_scalars(cells), "cells": _cell_table(cells)}
        logged["samples"] = _sample_table(samples, cells, images, questions, place)
        for path in sorted(folder.glob("curve*.png")):
            logged[path.stem] = wandb.Image(str(path))
        run.log(logged)
        return Path(run.settings.sync_dir)


@contextmanager
def _environment(folder: Path, *, offline: bool) -> Iterator[None]:
    """wandb's folders, which it reads from the environment alone; restored afterwards.

    Its service leaves an empty folder in TMPDIR, and the path of its socket there must be short: a
    temporary folder of its own serves both.
    """
    home = folder / "wandb"
    changed: dict[str, str | None] = {
        "WANDB_DIR": str(folder),
        "WANDB_DATA_DIR": str(home / "data"),
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_ARTIFACT_DIR": str(home / "artifacts"),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
    }
    if offline:  # online, the person's own login and server count
        changed["WANDB_CONFIG_DIR"] = str(home / "config")
        changed["WANDB_API_KEY"] = None  # what is not known cannot be logged
    before = {key: os.environ.get(key) for key in [*changed, "TMPDIR"]}
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wandb-") as scratch:
        try:
            _set(changed | {"TMPDIR": scratch})
            yield
        finally:
            if wandb.run is None:  # a run of the caller's own still needs the service
                wandb.teardown()
            _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for key, value in variables.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@contextmanager
def _run(
    config: Mapping[str, object],
    folder: Path,
    mode: Mode,
    *,
    project: str,
    group: str,
    name: str,
) -> Iterator[wandb.Run]:
    settings = wandb.Settings(
        mode=mode,
        root_dir=str(folder.resolve()),
        silent=True,
        console="off",
        disable_git=True,  # a remote's address may hold a token
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_machine_info=True,
    )
    if mode == "online":
        _reach(str(wandb.setup().settings.base_url))
    try:
        run = wandb.init(
            config={str(key): _plain(value) for key, value in config.items()}, project=project,
            group=group, name=name, job_type="sweep", settings=settings, reinit="create_new",
        )  # fmt: skip
    except wandb.Error as error:
        raise UserError(f"wandb.mode={mode} failed ({error}); {REMEDY}") from error
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish(exit_code=0)


def _reach(address: str) -> None:
    """Fail within seconds where wandb itself would retry for minutes."""
    try:
        urllib.request.urlopen(address, timeout=10).close()
    except urllib.error.HTTPError:
        return  # an answer, whatever it says
    except (OSError, ValueError) as error:
        raise UserError(f"wandb.mode=online cannot reach {address} ({error}); {REMEDY}") from error


def _scalars(cells: pd.DataFrame) -> dict[str, float]:
    values: dict[str, float] = {}
    several = len(cells[stats.GROUP].drop_duplicates()) > 1
    for (model, task, protocol), group in tables.groups(cells):
        prefix = f"{tables.short(model)}/{task}/{protocol}/" if several else ""
        for _, cell in tables.references(group).iterrows():
            values[f"{prefix}accuracy/{cell['label'].replace(' ', '_')}"] = cell["accuracy"]
        for _, cell in tables.compressed(group).iterrows():
            kind = "vacuous" if cell["vacuous"] else "accuracy"
            values[f"{prefix}{kind}/{cell['label']}@{tables.setting(cell)}"] = cell["accuracy"]
    return {key: float(value) for key, value in values.items()}


def _cell_table(cells: pd.DataFrame) -> wandb.Table:
    rows = [[_plain(value) for value in row] for row in cells.itertuples(index=False)]
    return wandb.Table(columns=list(cells.columns), data=rows, allow_mixed_types=True)


def _sample_table(
    samples: pd.DataFrame, cells: pd.DataFrame, images: Picture, questions: int, place: str
) -> wandb.Table:
    """Questions x (references and methods at one setting), each with its image."""
    shown = pd.concat([tables.references(cells), tables.compressed(cells)])
    shown = shown[stats.roles(shown).ne("method") | shown.apply(tables.setting, axis=1).eq(place)]
    table = wandb.Table(columns=SAMPLE_COLUMNS, allow_mixed_types=True)
    for (_, task, _), group in tables.groups(samples):
        rows = _first_rows(group, questions)
        pictures = {row: _picture(images(task, row)) for row in rows}
        here = group[group["row"].isin(rows) & group["cell_key"].isin(shown["cell_key"])]
        for _, line in here.sort_values("row", kind="stable").iterrows():
            line["image"] = pictures[line["row"]]
            line["kept_fraction"] = line["kept_tokens"] / line["evictable_tokens"]
            table.add_data(*(_plain(line.get(column)) for column in SAMPLE_COLUMNS))
    return table


def _first_rows(samples: pd.DataFrame, questions: int) -> list[int]:
    """The first rotation of up to `questions` questions, evenly spread over all of them."""
    first = samples.sort_values("index").drop_duplicates("question_id").sort_values("question_id")
    picks = np.unique(
        np.linspace(0, len(first) - 1, min(questions, len(first))).round().astype(int)
    )
    return [int(row) for row in first["row"].iloc[picks]]


def _picture(image: Image.Image | None) -> wandb.Image | None:
    return None if image is None else wandb.Image(image)


def _plain(value: object) -> object:
    """Built-in types for wandb: mappings and lists inside too, nan and NA as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | wandb.Image):
        return value
    if value is pd.NA or value != value:
        return None
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, bool | int | float) else str(value)
