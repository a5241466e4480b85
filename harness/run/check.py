"""`evictbench check`: whether a sweep would work, and what it would take.

Takes the settings of a run, finds and loads model and data, and tries each task. Must not write
anything that a run would find.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.process import scratch
from harness.process.console import say
from harness.run import cli, collect
from harness.run.lines import device, duration, hours, line, percent, size
from harness.settings.config import Config

if TYPE_CHECKING:
    from harness.scoring.bridge import Bridge


def main() -> int:
    """Check what was typed; exit codes as of `harness.run.cli`."""
    return cli.main(check)


def check(config: Config) -> None:
    """Print what a sweep would take, and `ok` where it would work.

    Raises:
        UserError: it would not, or a cell's answers would not be those of its method.
    """
    from harness.run import sweep  # late: settings are checked before anything heavy loads
    from harness.run.trial import Trial
    from harness.run.validate import validate

    job = validate(config)
    _check_folder(job.folder)
    log = Path(scratch.folder()) / collect.LOG
    line("check", f"{config.model.name} on {', '.join(config.tasks)}; nothing is written")
    asked = sweep.benchmarks(job, log)
    for one in asked:
        collect.refuse_unsupported(one)
    engine = collect.load_engine(job.config, log, asked[0].context)
    _tell_model(engine)
    seconds = sum(Trial(engine, one, log).run() for one in asked)
    _tell_split(engine)
    _tell_memory(engine)
    line("sweep", f"{duration(seconds)} of answering, {hours(seconds)} device-hours, if the store "
         "has nothing of it yet")  # fmt: skip
    say("ok")


def _check_folder(folder: Path) -> None:
    """UserError where the run folder could not be written."""
    places = (folder.absolute(), *folder.absolute().parents)
    there = next(place for place in places if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"{there} is no folder that can be written: choose another run.dir.")


def _tell_model(engine: "Bridge") -> None:
    loaded, model = engine.loaded, engine.loaded.model
    dtype = str(loaded.dtype).removeprefix("torch.")
    family = f"{type(model).__name__} ({model.config.model_type})"
    line("model", f"{family}, {dtype} on {device(loaded.device)}")
    every = model.config.get_text_config(decoder=True).num_hidden_layers
    layout = engine.layout
    line("layers", f"{len(layout.layers) + len(layout.shared)} of {every} can be evicted")
    line("weights", size(model.get_memory_footprint()))


def _tell_split(engine: "Bridge") -> None:
    """The self-check's differences, the largest over all kinds of prompt."""
    from harness.engine import selfcheck

    found, dtype = selfcheck.findings(engine.loaded.model).values(), engine.loaded.dtype
    logits, entries = max(one.logits for one in found), max(one.entries for one in found)
    line(
        "split",
        f"reading a prompt in two parts changes logits by {percent(logits)} "
        f"({percent(selfcheck.LOGITS[dtype])} is noise) and the cache by {percent(entries)} "
        f"({percent(selfcheck.ENTRIES[dtype])} is noise)",
    )


def _tell_memory(engine: "Bridge") -> None:
    """The most that was in use, which only a CUDA device tells."""
    import torch

    if engine.loaded.device.type == "cuda":
        used = torch.cuda.max_memory_reserved(engine.loaded.device)
        _, every = torch.cuda.mem_get_info(engine.loaded.device)
        line("memory", f"{size(used)} of {size(every)} at most, weights included")
