"""Time rows a second: prompts made one by one or ahead, and in one or two processes.

`make bench BENCH=workers`, or with settings of a run: ARGS="model=... task=... limit=20". Every
way answers the same rows, in turns; a line of JSON has the medians and their ratios.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from harness.run import collect, spawned, sweep
from harness.run.local import Local
from harness.run.validate import validate
from harness.scoring.adapter import Workers
from harness.scoring.rows import Engine, Row, answered, ready
from harness.settings.config import CONF, Config, as_config, register

DEFAULTS = ("limit=12", "wandb.mode=disabled", "run.name=bench")


def settings(typed: Sequence[str]) -> Config:
    """The settings of a run."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return as_config(compose("config", [*DEFAULTS, *typed]))


def rows_of(config: Config, folder: Path) -> tuple[list[Row], dict[str, object]]:
    """All rows of a run, to be answered by every cell, and the settings in the cell keys."""
    config = replace(config, run=replace(config.run, dir=str(folder)))
    job = validate(config)
    job.folder.mkdir(parents=True, exist_ok=True)
    found = []
    asked = sweep.benchmarks(job, job.folder / collect.LOG)
    for one in asked:
        plan, benchmark = collect.planned(one), one.benchmark
        for position in range(len(plan.rows)):
            messages = partial(benchmark.messages, position)
            found.append(plan.row(position, plan.cells, messages, benchmark.generation))
    return found, dict(asked[0].context)


def one_by_one(engine: Engine, rows: Iterable[Row]) -> None:
    """The prompt, then the answers, row after row."""
    for row in rows:
        answered(engine, row, ready(engine, row))


def drained(workers: Workers, rows: Iterable[Row]) -> None:
    """All answers of the workers."""
    for _ in workers.run(rows):
        pass


def timed(work: Callable[[Iterable[Row]], None], rows: Sequence[Row]) -> float:
    """Rows a second."""
    began = time.monotonic()
    work(rows)
    return len(rows) / (time.monotonic() - began)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", help="Hydra overrides of the run")
    parser.add_argument("--rounds", type=int, default=3, help="times that every way is timed")
    args = parser.parse_args(argv)
    config = settings(args.settings)
    with tempfile.TemporaryDirectory(prefix="evictbench-") as folder:
        rows, context = rows_of(config, Path(folder))
        log = Path(folder) / collect.LOG
        engine = collect.load_engine(config, log, context)
        ways = {"one by one": partial(one_by_one, engine), "ahead": partial(drained, Local(engine))}
        speeds: dict[str, list[float]] = {}
        for _ in range(args.rounds + 1):
            for name, work in ways.items():
                speeds.setdefault(name, []).append(timed(work, rows))
        for count in (1, 2):
            given = replace(config, workers=count)
            given.engine.threads = 1  # the same for one and for two
            how = (Path(folder), context, collect.load_engine, lambda origin: None)
            with spawned.started(given, *how, count, count) as pool:
                name = f"workers={count}"
                speeds[name] = [timed(partial(drained, pool), rows) for _ in range(args.rounds + 1)]
    medians = {name: statistics.median(found[1:]) for name, found in speeds.items()}  # first: warm
    print(
        json.dumps(
            {
                "rows": len(rows),
                "cells": len(rows[0].cells),
                "rows_per_second": {name: round(value, 3) for name, value in medians.items()},
                "ahead / one by one": round(medians["ahead"] / medians["one by one"], 3),
                "2 workers / 1": round(medians["workers=2"] / medians["workers=1"], 3),
                "model": config.model.name,
                "device": context["device"],
                "machine": f"{platform.machine()}, torch {torch.__version__}",
            }
        )
    )


if __name__ == "__main__":
    main()
