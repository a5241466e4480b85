"""What a finished run leaves: its manifest, the tables and reports, the runs in wandb, the paths.

Knows the job and what was scored; must not load models or answer anything.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from harness.models.identity import identify
from harness.process.console import say, say_filled, width
from harness.records import plan, provenance
from harness.records.atomic import replacing
from harness.records.plan import Record
from harness.records.store import Store
from harness.run.asked import Asked
from harness.run.validate import Job
from harness.settings.config import EMBEDDED
from harness.settings.variants import factors, titles, traits, window_weights

if TYPE_CHECKING:
    import pandas as pd

    from harness.report.study import Study

LOGGED = "logged.json"

SoFar = Mapping[str, tuple[int, int]]  # by task: questions answered by every cell, and asked


def write(
    job: Job,
    asked: Sequence[Asked],
    store: Store,
    frame: "pd.DataFrame",
    record: Record,
    computed: int,
    seconds: float,
    so_far: SoFar | None = None,
) -> None:
    """Write the tables, log to wandb where something is new, print the table and the paths.

    so_far: how much there is of an unfinished run, which is not logged.
    """
    from harness.report import build, evidence, files, reading, tables
    from harness.report.headline import headline
    from harness.run import traces

    config = job.config
    facts = manifest(job, asked, store, frame, record) | {"samples": build.digest(frame)}
    if so_far:
        facts["unfinished"] = {task: list(counts) for task, counts in so_far.items()}
    session = {"rows computed this time": computed, "seconds this time": round(seconds)}
    say("computing the statistics, then writing tables, pictures and the report")
    study = build.study(frame, facts, session)
    traces.write(store, asked, config.model.name, job.folder, evidence.rows_shown(study))
    study = build.traced(study, facts, job.folder)
    paths = files.write(study, job.folder)
    with replacing(job.folder / build.MANIFEST) as part:  # last: it makes the run a finished one
        part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    reading.seal(job.folder)
    cells = study.cells
    say(f"\n{tables.console_table(cells, study.means, width())}\n")
    for sentence in headline(study):
        say_filled(sentence)
    say("")
    if config.wandb.mode != "disabled" and not so_far:
        paths |= _log(job, asked, study)
    pictures = [path for path in paths.values() if path.suffix == ".png"]
    if len(pictures) > 1:
        say(f"pictures     {job.folder}/*.png, {len(pictures)} files")
    paths["answers"] = store.path
    for name, path in paths.items():
        if path not in pictures or len(pictures) == 1:
            say(f"{name:<12} {path}")


def _log(job: Job, asked: Sequence[Asked], study: "Study") -> dict[str, Path]:
    """Log to wandb unless the same was; the folder of the runs, by "wandb"."""
    from harness import tracking  # late: wandb takes seconds to import

    config = job.config
    said = {"runs": tracking.identities(study, config.run.name), **asdict(config.wandb)}
    if _logged(job.folder) == said:
        return {}
    logged = tracking.log(
        study,
        _pictures(asked),
        OmegaConf.to_container(OmegaConf.structured(config), resolve=True),
        job.folder,
        config.wandb.mode,
        project=config.wandb.project,
        group=config.run.name,
    )
    with replacing(job.folder / "wandb" / LOGGED) as part:
        part.write_text(json.dumps(said), encoding="utf-8")
    return {"wandb": logged[0].parent} if logged else {}


def _logged(folder: Path) -> object:
    """What was logged to wandb last, as `write` notes it; None where that cannot be read."""
    try:
        return json.loads((folder / "wandb" / LOGGED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def manifest(
    job: Job, asked: Sequence[Asked], store: Store, frame: "pd.DataFrame", record: Record
) -> dict[str, Any]:
    """What a report needs to know beside the samples; the same for the same answers."""
    config = job.config
    known, counts = store.origins(), frame["origin"].value_counts()
    origins = [(known.get(origin, {}), int(count)) for origin, count in counts.items()]
    facts = {
        "name": config.run.name,
        "caveat": config.model.caveat if is_embedded(job) else None,
        "told": [*job.told, *(said for one in asked for said in one.benchmark.told)],
        "left_out": _left_out(asked),
        "plan": asdict(plan.plan_of(config)),
        "registered": record.stands,
        "registration": record.sentence(),
        "methods": config.methods,
        "titles": titles(job.variants),
        "traits": traits(job.variants),
        "factors": factors(job.variants),
        "window_weights": window_weights(job.variants),
        "weights": job.weights,
        "data": {one.task.name: one.context["data"] for one in asked},
        "provenance": provenance.facts(
            job.command,
            job.weights,
            {one.task.name: one.context for one in asked},
            origins,
            job.cells(blank=False),
        ),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _left_out(asked: Sequence[Asked]) -> dict[str, Any] | None:
    """The questions that could not be scored, by task; None where there are none."""
    found = {one.task.name: one.benchmark.left_out for one in asked}
    return {task: left for task, left in found.items() if left} or None


def is_embedded(job: Job) -> bool:
    """Whether the weights are those that the caveat of the settings is about, wherever they lie."""
    return job.weights == identify(str(EMBEDDED / "tiny_vlm"))


def _pictures(asked: Sequence[Asked]) -> Any:
    """The image of a task's row, asked by task name and row."""
    benchmarks = {one.task.name: one.benchmark for one in asked}
    return lambda task, row: benchmarks[task].image(row)
