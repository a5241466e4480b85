"""One run from settings to tables: validate, load, answer what is missing, score, write, log.

The only module that knows all rooms; it must not hold what belongs in one of them.
"""

import errno
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from harness import provenance
from harness.config import Config, check
from harness.errors import UserError
from harness.grid import Cell, cell_key, expand
from harness.identity import identify
from harness.scoring.hub import require_dataset
from harness.store import FILE_NAME, Store, locked
from harness.variants import check_anchors, sweep_wide, untouched, variants

if TYPE_CHECKING:
    import pandas as pd

    from harness.scoring.adapter import Engine, Plan
    from harness.scoring.benchmark import Benchmark

LOG = "libraries.log"
LOGGED = "logged_to_wandb"
WIDTH = 100


@dataclass(frozen=True)
class Job:
    """A validated run: its cells, the weights they are about, and what to tell about them."""

    config: Config
    cells: list[Cell]
    weights: str
    folder: Path
    told: list[str]


def run(config: Config) -> Path:
    """Answer, score and report one run.

    Returns:
        The run folder.

    Raises:
        UserError: the settings, the model, the data or the run folder do not allow it.
    """
    began = time.monotonic()
    job = validate(config)
    with locked(job.folder), writing(job.folder), Store(job.folder / FILE_NAME) as store:
        benchmark = load_benchmark(job)
        context = settings_of(job, benchmark)
        cells = {cell_key(cell, context): cell for cell in job.cells}
        computed = collect(job, benchmark, store, cells, context)
        frame = score(job, benchmark, store, cells)
        summarise(job, benchmark, store, frame, context, computed, time.monotonic() - began)
    return job.folder


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one sentence what inside the run folder cannot be written."""
    try:
        yield
    except OSError as error:
        place = error.filename2 or error.filename
        inside = place is not None and Path(str(place)).is_relative_to(folder)
        if not inside and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise UserError(
            f"{place or folder} cannot be written ({error.strerror}): free that path or space "
            "there, or choose another run.dir; all answers so far are kept."
        ) from error


def validate(config: Config) -> Job:
    """Check everything that needs no model, cheapest first."""
    ratios, budgets = check(config)
    path = config.task.overrides.get("dataset_path")
    if path is not None:
        require_dataset(config.task.name, str(path))
    weights = identify(config.model.pretrained, config.model.revision)
    chosen = variants(config.methods, sweep_wide(config))
    check_anchors(chosen, config.protocol)
    effective = {one.label: {"method": one.method, **dict(one.params)} for one in chosen}
    config = replace(config, methods=effective)
    blank = config.blank_image and config.task.images
    cells = expand(chosen, ratios, budgets, blank)
    told = untouched(chosen, sweep_wide(config))
    return Job(config, cells, weights, Path(config.run.dir) / config.run.name, told)


def load_benchmark(job: Job) -> "Benchmark":
    """Load the task with lmms-eval's output kept in the run folder."""
    say(f"{job.folder}: {len(job.cells)} cells, loading {job.config.task.name} with lmms-eval")
    for sentence in job.told:
        say(f"note: {sentence}")
    from harness.scoring import quiet

    with quiet.into(job.folder / LOG):
        from harness.scoring.benchmark import Benchmark

        return Benchmark(job.config.task, job.config.limit)


def settings_of(job: Job, benchmark: "Benchmark") -> dict[str, object]:
    """Every setting that can change an answer, besides the cell itself.

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
    return {
        "weights": job.weights,
        "data": benchmark.fingerprint,
        "task": config.task.lmms_task,
        "protocol": config.protocol.name,
        "tail": config.protocol.tail if config.protocol.name == "replay" else None,
        "generation": benchmark.generation,
        "device": kind,
        "dtype": dtype,
        "seed": config.seed,
    }


def collect(
    job: Job,
    benchmark: "Benchmark",
    store: Store,
    cells: Mapping[str, Cell],
    context: Mapping[str, object],
) -> int:
    """Answer what the store lacks; returns the number of rows that were computed."""
    from harness.scoring.adapter import Plan

    plan = Plan(cells, benchmark.rows, [q.letters for q in benchmark.questions])
    done = store.done(cells)
    missing = sum(len(done.get(row, ())) < len(cells) for row in benchmark.rows)
    size = f"{len(cells)} cells x {len(benchmark.rows)} rows"
    if not missing:
        say(f"{size}: all answers are in the store, nothing to compute")
        return 0
    say(f"{size}: {missing} rows to compute, loading {job.config.model.name}")
    refuse_unsupported(benchmark.generation)
    engine = load_engine(job, context)
    provenance.note(store, say)
    store.describe({key: provenance.description(cell, context) for key, cell in cells.items()})
    write_config(job)
    with progress(missing) as tick:
        answer_all(engine, benchmark, plan, store, job, tick)
    return missing


def refuse_unsupported(generation: Mapping[str, object]) -> None:
    """Raise UserError for generation arguments that the engine does not honour."""
    from harness.engine import Generation

    try:
        Generation.from_kwargs(generation)
    except ValueError as error:
        raise UserError(f"The task's generation arguments cannot be used: {error}") from error


def load_engine(job: Job, context: Mapping[str, object]) -> "Engine":
    """Load the model; it must come out as the cell keys say."""
    from harness.scoring import quiet

    config = job.config
    with quiet.into(job.folder / LOG):
        from harness.scoring.bridge import Bridge

        bridge = Bridge(config.model, config.protocol, config.device, config.dtype, config.engine)
    loaded = str(bridge.loaded.dtype).removeprefix("torch.")
    if loaded != context["dtype"]:
        raise RuntimeError(f"the model runs in {loaded} and its cells are keyed {context['dtype']}")
    return bridge


def answer_all(
    engine: "Engine",
    benchmark: "Benchmark",
    plan: "Plan",
    store: Store,
    job: Job,
    tick: Callable[[int], None],
) -> None:
    """Let lmms-eval send every request through the engine."""
    from harness.scoring import quiet
    from harness.scoring.benchmark import evaluate

    with quiet.into(job.folder / LOG):
        from harness.scoring.adapter import Collector

        model = Collector(engine, plan, store, tick)
        evaluate(model, benchmark, job.folder / "lmms_eval", job.config.seed)


@contextmanager
def progress(rows: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, at most 100 columns; few lines where there is no terminal."""
    from tqdm import tqdm

    stream = sys.stderr  # taken now: lmms-eval runs with its output redirected
    pause = 0.2 if stream.isatty() else 30.0
    with tqdm(
        total=rows, unit="row", ncols=WIDTH - 1, file=stream, mininterval=pause, desc="sweep"
    ) as bar:

        def tick(cells: int) -> None:
            bar.set_postfix_str(f"{cells} cells/row", refresh=False)
            bar.update()

        yield tick


def score(
    job: Job, benchmark: "Benchmark", store: Store, cells: Mapping[str, Cell]
) -> "pd.DataFrame":
    """Score every stored answer; lmms-eval's own aggregate of the full cache must agree."""
    from harness.scoring import quiet, samples

    names = {
        "model": job.config.model.name,
        "task": job.config.task.name,
        "protocol": job.config.protocol.name,
    }
    with quiet.into(job.folder / LOG):
        frame = samples.table(store, benchmark, cells, names)
        full = frame[frame["cell_key"] == next(iter(cells))]
        benchmark.verify(list(full["text"]), job.folder / "lmms_eval")
    return frame


def summarise(
    job: Job,
    benchmark: "Benchmark",
    store: Store,
    frame: "pd.DataFrame",
    context: Mapping[str, object],
    computed: int,
    seconds: float,
) -> None:
    """Write the tables, log to wandb where something is new, print the table and the paths."""
    from harness import report, stats, tracking

    config = job.config
    write_config(job)
    facts = {"name": config.run.name, "caveat": config.model.caveat, "told": job.told}
    meta = {k: v for k, v in facts.items() if v} | provenance.facts(
        job.weights, context, store, job.cells
    )
    meta |= {"rows computed this time": computed, "seconds this time": round(seconds)}
    paths = report.write(frame, job.folder, meta)
    cells = stats.summarise(frame)
    say(f"\n{report.console_table(cells)}\n")
    fresh = provenance.digest([*cells["cell_key"], benchmark.rows, config.wandb.mode])
    if config.wandb.mode != "disabled" and store.get(LOGGED) != fresh:
        where = tracking.log_run(
            frame,
            cells,
            benchmark.image,
            OmegaConf.to_container(OmegaConf.structured(config), resolve=True),
            job.folder,
            config.wandb.mode,
            group=config.run.name,
            name=config.run.name,
            project=config.wandb.project,
        )
        store.put(LOGGED, fresh)
        paths = {**paths, "wandb": where} if where else paths
    for name, path in paths.items():
        say(f"{name:<10} {path}")


def write_config(job: Job) -> None:
    """Put the resolved settings beside the results, whole or not at all."""
    from harness.report import replacing

    with replacing(job.folder / "config.yaml") as part:
        part.write_text(OmegaConf.to_yaml(OmegaConf.structured(job.config), resolve=True))


def say(text: str) -> Any:
    """Tell the person at the terminal."""
    print(text, flush=True)
