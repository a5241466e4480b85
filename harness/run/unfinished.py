"""What the answers of an unfinished run say so far: its settings and data, never its model.

Only questions count that every cell has answered. They are asked in an order that has nothing to do
with the data's, so they are what a smaller limit would have asked.
"""

import time
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from harness.errors import UserError
from harness.process.console import say
from harness.records import places, plan
from harness.records.folder import SETTINGS, locked
from harness.records.store import Store, place_of
from harness.run import outcome, sweep
from harness.run.asked import Asked
from harness.run.outcome import SoFar
from harness.run.validate import validate
from harness.settings.config import Config, as_config


def report(folder: Path) -> None:
    """Score what the store holds of a run, and write its tables and reports.

    Raises:
        UserError: no question has been answered by every cell, or the settings, the model's files
            or the data are not what they were.
    """
    began = time.monotonic()
    job = validate(settings(folder / SETTINGS, folder))
    with (
        places.speaking(folder),
        Store(place_of(Path(job.config.run.dir), job.weights)) as store,
    ):
        every = sweep.load_benchmarks(job)
        about = sweep.planned(job, every)
        so_far = {one.task.name: (len(one.whole(store)), one.questions) for one in every}
        asked = [one for one in every if narrow(one, store)]
        if not asked:
            raise UserError(
                f"{folder} is unfinished, and no question has been answered by every cell yet: "
                "wait, or give the sweep's command again."
            )
        with locked(folder, say):
            record = plan.register(store, job.config, about, folder)
            frame = sweep.score(job, asked, store)
            spent = time.monotonic() - began
            outcome.write(job, asked, store, frame, record, 0, spent, unfinished(so_far))
            plan.reported(store, record, job.config, about)


def settings(path: Path, folder: Path) -> Config:
    """The settings of a run as a file holds them, made to be about `folder`."""
    try:
        given = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        config = as_config(given)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}): give the sweep's "
            "command again, which writes it."
        ) from error
    place = folder.resolve()
    config.run.dir, config.run.name = str(place.parent), place.name
    return config


def narrow(one: Asked, store: Store) -> bool:
    """Keep the questions that every cell has answered; whether there are any."""
    whole = one.whole(store)
    if whole:
        one.benchmark.keep(whole)
    return bool(whole)


def unfinished(so_far: SoFar) -> SoFar:
    """The counts where some are missing; empty where all has been answered."""
    return so_far if any(done < total for done, total in so_far.values()) else {}
