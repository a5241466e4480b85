"""One part of a run: answers its share of the questions into a store of its own.

No part waits for another; the last one to end folds them all. Must not score or report.
"""

from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from harness.errors import UserError
from harness.process.console import say
from harness.records import places, plan, shards
from harness.records.atomic import replacing
from harness.records.copies import Pairs
from harness.records.folder import SETTINGS
from harness.records.shards import Attempt, ShardStore
from harness.records.store import place_of
from harness.run import merge, sweep
from harness.run.asked import Asked
from harness.run.collect import LOG, collect
from harness.run.validate import Job, validate
from harness.settings.config import Config
from harness.settings.shards import Shard, local_number, shard_of


def run(config: Config) -> Path:
    """Answer one part; returns the run folder.

    Raises:
        UserError: as a whole run, or the run folder holds parts of another run.
    """
    shard = shard_of(config.shard)
    assert shard is not None
    refuse_unsuited(config)
    job = validate(replace(config, shard=None, device=device_of(config)))
    with places.speaking(job.folder):
        wanted = _answer(job, shard)
        if shards.known(store_of(job), shards.attempts(job.folder)).has(wanted):
            say(f"part {shard} was the last one: all answers are there")
            merge.merge(job.folder)
    return job.folder


def refuse_unsuited(config: Config) -> None:
    """UserError for settings that are about a whole run."""
    if config.store.repair:
        raise UserError(
            "store.repair=true is about the store of the whole run: leave it out, since "
            "evictbench merge takes whatever is sound from damaged parts."
        )
    if config.run.report_every is not None:
        raise UserError(
            "run.report_every is about a whole run: leave it out, and give evictbench merge RUN "
            "and evictbench report RUN while parts are answered."
        )


def device_of(config: Config) -> str:
    """The device that is set; for `auto` the GPU that a launcher meant for this process."""
    local = local_number()
    if config.device != "auto" or config.shard != "auto" or local is None:
        return config.device
    import torch

    return f"cuda:{local}" if local < torch.cuda.device_count() else config.device


def store_of(job: Job) -> Path:
    """The store of the whole run."""
    return place_of(Path(job.config.run.dir), job.weights)


def _answer(job: Job, shard: Shard) -> Pairs:
    """Answer what nobody has answered of this part; returns what the whole run asks."""
    earlier = shards.attempts(job.folder)
    log = job.folder / shards.FOLDER / f".{shard.index}-{LOG}"
    log.parent.mkdir(parents=True, exist_ok=True)
    asked = sweep.benchmarks(job, log)
    about = sweep.planned(job, asked)
    everything = plan.everything(job.config, about)
    plan.refuse_other(job.folder, everything)
    own = shards.attempt(job.folder, str(shard), everything, job.command)
    known = shards.known(store_of(job), earlier)
    shards.refuse_unequal([*(one for one in earlier if not one.absorbed(known.notes.get)), own])
    wanted = {key: set(one.benchmark.rows) for one in asked for key in one.cells}
    shards.begin(own)
    say(f"part {shard} of {job.folder}, in {own.folder}")
    with ShardStore(own.store, known.answers) as store:
        for found in known.plans:
            store.put_plan(found)
        plan.register(store, job.config, about, own.folder)
        write_settings(job, own, asked[0])
        for one in asked:
            narrow(one, shard)
        config = replace(job.config, wandb=replace(job.config.wandb, mode="disabled"))
        collect(config, [one for one in asked if one.benchmark.rows], store, own.folder, _nothing)
    shards.end(own)
    return wanted


def narrow(one: Asked, shard: Shard) -> None:
    """Keep the questions of this part: every `count`-th in the order in which they are asked."""
    pairs = zip(one.benchmark.turns, one.benchmark.questions, strict=True)
    one.benchmark.keep({question.question_id for turn, question in pairs if shard.holds(turn)})


def write_settings(job: Job, own: Attempt, one: Asked) -> None:
    """Put the settings beside the answers, with the device's kind as the cell keys have it."""
    config = replace(job.config, device=str(one.context["device"]))
    with replacing(own.folder / SETTINGS) as part:
        part.write_text(OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))


def _nothing() -> None:
    """A part writes its settings before its answers."""
