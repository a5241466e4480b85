"""Sweeps in Weights & Biases: one run for each (model, task, protocol) group.

Offline unless asked otherwise; everything stays in the run folder, for a later `wandb sync`. Must
not know of tensors, lmms-eval or Hydra. `scripts/wandb_workspace.py` lays out what is logged here.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import wandb
from PIL import Image

from harness.errors import UserError
from harness.report.study import Study
from harness.tracking import groups, keys, lines, media, session, shown
from harness.tracking.live import live as live

Picture = Callable[[str, int], Image.Image | None]


def log(
    study: Study,
    images: Picture,
    config: Mapping[str, object],
    folder: Path,
    mode: str,
    *,
    project: str = "evictbench",
    group: str,
) -> list[Path]:
    """Log a finished sweep, a run for each (model, task, protocol) of its cells.

    A run is named "<model> <task> <protocol>" and tagged with the three, and with "vacuous" where
    all its compressed cells are. Its history has a step a ratio (or budget) with the lines of
    `lines.steps`, then one with the tables `keys.TABLES` and the pictures `keys.PICTURES`, as far
    as there is something in them. Its summary holds the verdicts (`groups.scalars`), its notes say
    them.

    The id of a run is a digest of the sweep's name, the group and the content: the same answers
    logged or synced twice stay one run, and a sweep that has grown becomes a new run of the same
    name in the same group, beside the earlier one. A run that was deleted on the server keeps its
    id taken there: `wandb sync --id NEW` uploads it anew.

    Args:
        study: the whole sweep.
        images: the picture of a task's row (doc id), None where it has none.
        config: the job's settings.
        folder: the run folder.
        mode: "offline", "online" or "disabled".
        project: wandb project.
        group: groups the runs: the sweep's name.

    Returns:
        The wandb folders of the runs, in order of the groups; none when disabled.

    Raises:
        UserError: an unknown mode, or wandb refuses the project or cannot go online.
    """
    if mode not in session.MODES:
        raise UserError(
            f"wandb.mode={mode!r} is unknown; choose one of {', '.join(session.MODES)}."
        )
    if mode == "disabled":
        return []
    chosen = session.MODES[mode]
    with session.environment(folder.resolve(), offline=mode == "offline"):
        if mode == "online":
            session.reach("wandb.mode=online")
        return [
            _log(one, pictures, images, config, folder, chosen, project=project, group=group)
            for one, pictures in zip(
                groups.groups(study), groups.pictures(study, folder), strict=True
            )
        ]


def identities(study: Study, group: str) -> list[str]:
    """The ids of the runs that `log` would write: other answers or another analysis, other ids."""
    return [groups.identity(one, group) for one in groups.groups(study)]


def _log(
    study: Study,
    pictures: Mapping[str, Path],
    images: Picture,
    config: Mapping[str, object],
    folder: Path,
    mode: session.Mode,
    *,
    project: str,
    group: str,
) -> Path:
    _, task, _ = groups.key(study)
    with session.run(
        folder,
        mode,
        name=" ".join(groups.key(study)),
        tags=groups.tags(study),
        id=groups.identity(study, group),
        notes=groups.notes(study),
        config=media.plain(config),
        project=project,
        group=group[: session.NAME],
        job_type="sweep",
    ) as run:
        steps = list(lines.steps(study))
        for axis in [one for one in keys.AXES if any(one in step for step in steps)]:
            _define(run, axis)
        for step in steps:
            run.log(step)
        shots = {name: media.picture(path) for name, path in pictures.items()}
        run.log(dict(_tables(study, partial(images, task))) | shots)
        scalars = {name: media.plain(value) for name, value in groups.scalars(study).items()}
        run.summary.update({name: value for name, value in scalars.items() if value is not None})
        return Path(run.settings.sync_dir)


def _define(run: wandb.Run, axis: str) -> None:
    """A horizontal axis and its lines, whose last point says nothing in a summary."""
    run.define_metric(axis, hidden=True, summary="none")
    for kind in keys.CURVES:
        run.define_metric(keys.metric(kind, "*", axis), step_metric=axis, summary="none")
    run.define_metric(keys.metric(keys.REFERENCE, "*", axis), step_metric=axis)


def _tables(study: Study, seen: media.Seen) -> Iterator[tuple[str, wandb.Table]]:
    for name in keys.FRAMES:
        frame = getattr(study, name)
        if len(frame):
            yield name, media.table(frame)
    for name, frame in ((keys.SAMPLES, shown.samples(study)), (keys.FLIPS, shown.flips(study))):
        if len(frame):
            yield name, media.table(frame, shown.IMAGE, seen)


def log_comparison(
    frames: Mapping[str, pd.DataFrame], name: str, folder: Path, mode: str, *, project: str
) -> Path | None:
    """Log a comparison of runs as a run of its own, of the job type "compare".

    Args:
        frames: tables by name; empty ones are left out.
        name: of the run, and the group that it stands in.
        folder: where wandb writes.
        mode: as in `log`.
        project: wandb project.

    Returns:
        The wandb folder of the run; None when disabled.

    Raises:
        UserError: wandb refuses the project or cannot go online.
    """
    if mode == "disabled":
        return None
    content = "\0".join(frame.to_json(orient="split") for frame in frames.values())
    digest = hashlib.sha256(f"{name}\0{content}".encode()).hexdigest()[:16]
    with session.environment(folder.resolve(), offline=mode == "offline"):
        if mode == "online":
            session.reach("--wandb online")
        with session.run(
            folder,
            session.MODES[mode],
            name=name,
            tags=["compare"],
            id=digest,
            project=project,
            group=name[: session.NAME],
            job_type="compare",
        ) as run:
            run.log({title: media.table(frame) for title, frame in frames.items() if len(frame)})
            return Path(run.settings.sync_dir)
