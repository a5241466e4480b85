"""One run from settings to tables: validate, load, answer what is missing, score, write, log.

The only module that knows all rooms; it must not hold what belongs in one of them.
"""

import hashlib
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from harness.errors import UserError
from harness.process.console import say
from harness.records import older, places, plan
from harness.records.atomic import replacing
from harness.records.folder import locked
from harness.records.store import Store, place_of
from harness.run import outcome, recitals, tasks
from harness.run.asked import Asked
from harness.run.collect import LOG, collect
from harness.run.tasks import Task
from harness.run.validate import Job, validate
from harness.settings.checks import refuse_images, template_of
from harness.settings.config import Config
from harness.settings.grid import cell_key
from harness.settings.variants import factors

if TYPE_CHECKING:
    import pandas as pd


def run(config: Config) -> Path:
    """Answer, score and report one run.

    Returns:
        The run folder.

    Raises:
        UserError: the settings, the model, the data or the run folder do not allow it.
    """
    began = time.monotonic()
    job = validate(config)
    with places.speaking(job.folder):
        with locked(job.folder, say):
            pass  # the folder can be written: known before anything is loaded
        _run(job, began)
    return job.folder


def _run(job: Job, began: float) -> None:
    run_dir = Path(job.config.run.dir)
    with Store(place_of(run_dir, job.weights), job.config.store.repair) as store:
        tell_repair(store)
        asked = load_benchmarks(job)
        older.absorb(store, run_dir, job.weights, say)
        about = planned(job, asked)
        with locked(job.folder, say):
            record = plan.register(store, job.config, about, job.folder)
        settings = in_yaml(job.config)
        shown = partial(show_config, job, settings)
        computed = collect(job.config, asked, store, job.folder, shown)
        with locked(job.folder, say):
            say("scoring every answer with lmms-eval")
            frame = score(job, asked, store)
            write_config(job, settings)
            spent = time.monotonic() - began
            outcome.write(job, asked, store, frame, record, computed, spent)
            plan.reported(store, record, job.config, about)


def tell_repair(store: Store) -> None:
    """Say what a repair dropped and where the damaged file is."""
    if store.aside is not None:
        say(
            f"note: the store was damaged: {store.lost:,} entries were dropped and are computed "
            f"anew, all others are kept; the damaged file is {store.aside}"
        )


def planned(job: Job, asked: Sequence[Asked]) -> plan.Asked:
    """What the plan is about beside the settings."""
    return plan.Asked(
        settings={one.task.name: one.context for one in asked},
        questions={one.task.name: (one.questions, one.answered) for one in asked},
        parameters={one.label: {"method": one.method, **dict(one.params)} for one in job.variants},
        compared=tuple(factors(job.variants)),
    )


def load_benchmarks(job: Job) -> list[Asked]:
    """Say what is asked and load it, with lmms-eval's output kept in the run folder."""
    names = ", ".join(job.config.tasks)
    count = sum(cell.evicts for cell in job.cells(blank=False))
    say(f"{job.folder}: {count} compressed cells, loading {names} with lmms-eval")
    return benchmarks(job, job.folder / LOG)


def benchmarks(job: Job, log: Path) -> list[Asked]:
    """Load every task and say what is to be noted of the settings and the data."""
    for sentence in job.told:
        say(f"note: {sentence}")
    from harness.scoring import quiet

    with quiet.into(log):
        asked = [_asked(job, task) for task in job.tasks]
    for sentence in [said for one in asked for said in one.benchmark.told]:
        say(f"note: {sentence}")
    return asked


def _asked(job: Job, task: Task) -> Asked:
    from harness.models import tokenizer
    from harness.scoring.benchmark import Benchmark

    config = tasks.with_data(task, job.config)
    too_long = tokenizer.too_long(job.config.model)
    benchmark = Benchmark(task.name, config, job.config.limit, task.label, too_long)
    images = benchmark.shows_images
    if images:
        refuse_images(task.name, job.config.model)
    context = settings_of(job, config.lmms_task, benchmark)
    blank = config.blank_image
    if blank is None:
        blank = job.config.blank_image
    cells = {cell_key(cell, context): cell for cell in job.cells(images and blank)}
    recitals.refuse(task.name, benchmark, job.config.model, cells.values())
    late = any(cell.protocol == "context" for cell in cells.values())
    if late and benchmark.rows and not benchmark.marks_context():
        raise UserError(
            f"task={task.name} has no image, video or marked context before its question, and "
            f"protocol={job.config.protocol.name} evicts behind one: give protocol=replay."
        )
    return Asked(task, benchmark, context, cells)


def settings_of(job: Job, lmms_task: str, benchmark: Any) -> dict[str, object]:
    """Every setting that can change an answer, besides the cell and its protocol.

    Library versions are left out on purpose: they go into the run's notes, and an upgrade does not
    throw away what was computed.
    """
    import torch

    config = job.config
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if kind == "cuda" else "float32"
    limits = {name: getattr(config.model, name) for name in ("max_length", "max_prompt", "tile")}
    if template := template_of(config.model):
        limits["chat_template"] = hashlib.sha256(template.encode()).hexdigest()[:16]
    if benchmark.shows_images and find_spec("torchvision"):
        limits["pixels"] = "torchvision"  # else transformers' other image processors
    return {
        "weights": job.weights,
        "data": benchmark.fingerprint,
        "task": lmms_task,
        "generation": benchmark.generation,
        "device": kind,
        "dtype": dtype,
        "seed": config.seed,
        **{name: value for name, value in limits.items() if value is not None},
    }


def score(job: Job, asked: Sequence[Asked], store: Store) -> "pd.DataFrame":
    """Score every stored answer; lmms-eval's own aggregate of the full cache must agree."""
    import pandas as pd

    from harness.scoring import quiet, samples

    frames = []
    with quiet.into(job.folder / LOG):
        for one in asked:
            names = {
                "model": job.config.model.name,
                "task": one.task.name,
                "group": one.task.group,
            }
            frame = samples.table(store, one.benchmark, one.cells, names)
            full = frame[frame["cell_key"] == next(iter(one.cells))]
            one.benchmark.verify(list(full["text"]), job.folder / "lmms_eval")
            if (
                frame.loc[~frame["failed"], "score"].isna().any()
            ):  # only a server knows what is right
                submit(one, frame, job.folder / "submissions")
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def submit(one: Asked, frame: "pd.DataFrame", folder: Path) -> None:
    """Write a file a cell for a task whose right answers only its server knows."""
    several = len(one.full) > 1
    for key, cell in one.cells.items():
        texts = list(frame[frame["cell_key"] == key]["text"])
        amount = f"n{cell.budget}" if cell.ratio is None else f"{cell.ratio:g}"
        kept = f"-{amount}" if cell.evicts else ""
        under = f"-{cell.under}" if several else ""
        one.benchmark.submit(texts, folder / one.task.name / f"{cell.label}{kept}{under}.xlsx")


def show_config(job: Job, settings: str) -> None:
    """Write the settings for whoever looks while the answers come."""
    with locked(job.folder, say):
        write_config(job, settings)


def in_yaml(config: Config) -> str:
    """The resolved settings as YAML."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))


def write_config(job: Job, settings: str) -> None:
    """Put the settings beside the results, whole or not at all."""
    with replacing(job.folder / "config.yaml") as part:
        part.write_text(settings)
