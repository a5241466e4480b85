"""Answering: every task's missing rows through one loaded model, into the store.

Knows the engine's bridge, lmms-eval's adapter and the store; must not score or report.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.process import stopping
from harness.process.console import say, say_filled, width
from harness.records import provenance
from harness.records.store import Store
from harness.run.asked import Asked
from harness.run.meanwhile import Told, meanwhile
from harness.settings.config import Config
from harness.settings.prefills import built
from harness.settings.workers import AUTO, here, through_ray

if TYPE_CHECKING:
    from harness.scoring.adapter import Plan, Progress, Workers
    from harness.scoring.bridge import Bridge

LOG = "libraries.log"


def collect(
    config: Config,
    asked: Sequence[Asked],
    store: Store,
    folder: Path,
    starting: Callable[[], None],
) -> int:
    """Answer what the store lacks; returns the number of rows that this process computed.

    `starting` is called once, when the model is loaded and the first answers are about to come.
    """
    missing = {one.task.name: one.missing(store) for one in asked}
    for one in asked:
        refuse_unsupported(one)
        say(_size(one, missing[one.task.name]))
    total = sum(missing.values())
    if not total:
        say("all answers are in the store, nothing to compute")
        return 0
    say(f"{total:,} rows to compute, loading {config.model.name}")
    with workers(config, folder, asked[0].context, store, total) as ready:
        starting()
        say("building the first requests with lmms-eval")
        return _all(config, asked, missing, store, folder, ready)


@contextmanager
def workers(
    config: Config, folder: Path, context: Mapping[str, object], store: Store, rows: int
) -> Iterator["Workers"]:
    """Who answers so many rows: the model in this process or in others, see `settings.workers`."""
    given = (config, folder, context, load_engine, store.computed_by)
    if through_ray(config.workers, config.ray.address, str(context["device"])):
        from harness.run import rays  # late: Ray is needed for several devices only

        with rays.started(*given) as pool:
            yield pool
        return
    cores = process_cpus()
    count = processes(config, str(context["device"]), rows, cores)
    if count > 1:
        from harness.run import spawned

        with spawned.started(*given, count, cores) as pool:
            yield pool
        return
    from harness.run.local import Local

    engine = load_engine(config, folder / LOG, context)
    store.computed_by(provenance.origin(context))
    yield Local(engine)


def processes(config: Config, kind: str, rows: int, cores: int) -> int:
    """How many processes of this machine answer so many rows."""
    automatic = config.workers == AUTO and kind == "cpu" and config.shard is None
    # A job that a launcher runs in a process of its own may not start further ones.
    if not automatic or multiprocessing.current_process().daemon:
        return here(config.workers, "", cores, rows, None, 0)
    import torch  # late: most settings decide without it

    from harness.models.hub import locate
    from harness.models.memory import free_memory

    threads = config.engine.threads
    slots = cores if threads == "auto" else cores // int(threads)
    weights = locate(config.model.pretrained, config.model.revision).size()
    return here(AUTO, kind, slots, rows, weights, free_memory(torch.device("cpu")))


def process_cpus() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _all(
    config: Config,
    asked: Sequence[Asked],
    missing: Mapping[str, int],
    store: Store,
    folder: Path,
    ready: "Workers",
) -> int:
    """Answer task after task; the number of rows that were computed."""
    computed = 0
    total = sum(missing.values())
    with meanwhile(config, folder, store, total) as tell, progress(total) as bar:
        for one in asked:
            if missing[one.task.name]:
                describe(one, store)
                tick = bar(f"{config.model.name} {one.task.name}")
                told = partial(_told, one, tick, tell)
                computed += answer_all(ready, one, store, folder, config.seed, told)
    return computed


def _told(
    one: Asked, tick: Callable[[int], None], tell: Told, row: int, texts: Mapping[str, str]
) -> None:
    """A row is done: move the bar and let others know."""
    tick(len(texts))
    tell(one, row, texts)


def _size(one: Asked, missing: int) -> str:
    size = f"{one.task.name}: {len(one.cells)} cells x {len(one.benchmark.rows):,} rows"
    return f"{size}, {missing:,} to compute" if missing else f"{size}, all in the store"


def describe(one: Asked, store: Store) -> None:
    """Note in the store what the cell keys of a task stand for."""
    what = {key: provenance.description(cell, one.context) for key, cell in one.cells.items()}
    store.describe(what)


def refuse_unsupported(one: Asked) -> None:
    """Raise UserError for generation arguments that the engine does not honour."""
    from harness.engine import Generation

    try:
        Generation.from_kwargs(one.benchmark.generation)
    except ValueError as error:
        raise UserError(
            f"The generation arguments of task={one.task.name} cannot be used: {error}"
        ) from error


def load_engine(config: Config, log: Path, context: Mapping[str, object]) -> "Bridge":
    """Load the model; it must come out as the cell keys say."""
    from harness.scoring import quiet

    with quiet.into(log):
        from harness.scoring.bridge import Bridge

        how = (config.model, config.protocol, config.device, config.dtype, config.engine)
        bridge = Bridge(*how, built(config.prefills))
    loaded = str(bridge.loaded.dtype).removeprefix("torch.")
    if loaded != context["dtype"]:
        raise RuntimeError(f"the model runs in {loaded} and its cells are keyed {context['dtype']}")
    return bridge


def planned(one: Asked) -> "Plan":
    """What a task asks, as lmms-eval's requests are answered by it."""
    from harness.scoring.adapter import Plan

    asked = one.benchmark
    letters = [question.letters for question in asked.questions]
    return Plan(
        one.cells, asked.rows, letters, asked.texts, asked.shown, asked.turns, one.task.name
    )


def answer_all(
    ready: "Workers",
    one: Asked,
    store: Store,
    folder: Path,
    seed: int,
    told: "Progress",
) -> int:
    """Let lmms-eval send every request of a task to the workers; the rows computed here."""
    from harness.scoring import quiet
    from harness.scoring.adapter import Collector
    from harness.scoring.benchmark import evaluate

    with quiet.into(folder / LOG):
        model = Collector(ready, planned(one), store, told)
        evaluate(model, one.benchmark, folder / "lmms_eval", seed)
        one.benchmark.task._instances = None  # they hold every prompt
    for sentence in model.told:
        say_filled(sentence)
    return model.computed


@contextmanager
def progress(rows: int) -> Iterator[Callable[[str], Callable[[int], None]]]:
    """A bar with rate and time left; few lines where there is no terminal.

    Yields:
        What names the task that is asked, and returns what is called with the cells of each row.
    """
    from tqdm import tqdm

    stream = sys.stderr  # taken now: lmms-eval runs with its output redirected
    pause = 0.2 if stream.isatty() else 30.0
    with tqdm(total=rows, unit="row", ncols=width() - 1, file=stream, mininterval=pause) as bar:

        def tick(cells: int) -> None:
            bar.set_postfix_str(f"{cells} cells/row", refresh=False)
            bar.update()
            stopping.check()

        def about(task: str) -> Callable[[int], None]:
            bar.set_description(task[: width() // 3], refresh=False)
            return tick

        yield about
