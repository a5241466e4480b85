"""`evictbench merge RUN`: fold the parts of a run into its store, and report it if it is whole.

Folding again changes nothing. It takes the data and the model's files, never the model.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.errors import UserError
from harness.process.console import say
from harness.records import places, plan, shards
from harness.records.folder import SETTINGS, locked
from harness.records.shards import Attempt
from harness.records.store import Store, place_of
from harness.run import outcome, sweep
from harness.run.asked import Asked
from harness.run.each import each_folder
from harness.run.unfinished import settings
from harness.run.validate import validate


def merge(folder: Path, mixed: bool = False) -> None:
    """Fold, then score and report.

    Args:
        folder: of the run.
        mixed: take answers that were computed by different software.

    Raises:
        UserError: there are no parts, they are not of one run, or answers are missing; what there
            is has been folded then.
    """
    began = time.monotonic()
    every = [one for one in shards.attempts(folder) if (one.folder / SETTINGS).is_file()]
    if not every:
        raise UserError(f"{folder} holds no parts of a run: give the sweep with shard=i/n first.")
    with places.speaking(folder), locked(folder, say):
        job = validate(settings(every[-1].folder / SETTINGS, folder), here=False)
        job = replace(job, command=every[-1].command)
        with Store(place_of(Path(job.config.run.dir), job.weights)) as store:
            new = [one for one in every if not one.absorbed(store.get)]
            shards.refuse_unequal(new or every[-1:], mixed)
            for one in new:
                fold(one, store)
            asked = sweep.load_benchmarks(job)
            about = sweep.planned(job, asked)
            record = plan.register(store, job.config, about, folder)
            sweep.write_config(job, sweep.in_yaml(job.config))
            refuse_missing(folder, asked, store, every)
            frame = sweep.score(job, asked, store)
            spent = time.monotonic() - began
            outcome.write(job, asked, store, frame, record, 0, spent)
            plan.reported(store, record, job.config, about)


def fold(one: Attempt, store: Store) -> None:
    """Add the answers of a part and say how many."""
    new, lost = one.fold(store)
    say(f"part {one.title}: {new:,} new answers{'' if one.ended else ', it has not ended'}")
    if lost:
        say(f"note: {lost:,} damaged entries of {one.store} were left out")


def refuse_missing(
    folder: Path, asked: Sequence[Asked], store: Store, every: Sequence[Attempt]
) -> None:
    """UserError that names the tasks and the parts of which answers are missing."""
    lacking = {one.task.name: one.missing(store) for one in asked}
    if not any(lacking.values()):
        return
    total = sum(len(one.benchmark.rows) for one in asked)
    named = ", ".join(f"{task} {count:,}" for task, count in lacking.items() if count)
    open_ = ", ".join(dict.fromkeys(one.title for one in every if not one.ended))
    ended = f" These parts have not ended: {open_}." if open_ else ""
    raise UserError(
        f"{folder}: {sum(lacking.values()):,} of {total:,} rows are missing ({named}).{ended} Wait "
        "for them, or give the sweep's command again with any number of parts; evictbench report "
        f"{folder} tells what is there."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Merge each folder; 2 where answers are missing or the parts do not fit."""
    parser = argparse.ArgumentParser(prog="evictbench merge", description=__doc__)
    parser.add_argument("folder", nargs="+", type=Path, help="run folders with shards/ in them")
    parser.add_argument(
        shards.FORCE,
        action="store_true",
        help="take parts that were computed by different software; the report tells them apart",
    )
    args = parser.parse_args(argv)
    return each_folder(args.folder, lambda folder: merge(folder, args.mixed))
