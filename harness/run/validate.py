"""A run's settings, checked by whatever needs no model, as the job that they ask for.

Must not load models or data, nor answer anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import UserError
from harness.models.identity import identify
from harness.records.provenance import command
from harness.run import tasks
from harness.run.tasks import Task
from harness.settings.caches import PQKeys, parted, uncut
from harness.settings.checks import check, refuse_images
from harness.settings.config import Config, ModelConfig
from harness.settings.grid import Cell, Prefill, Variant, expand
from harness.settings.prefills import check_rows, prefills
from harness.settings.variants import (
    cache_wide,
    check_anchors,
    contrasts,
    sweep_wide,
    untouched,
    variants,
)


@dataclass(frozen=True)
class Job:
    """A validated run: its tasks and cells, the weights they are about, what to tell about them.

    command: what was typed for it.
    """

    config: Config
    tasks: Sequence[Task]
    prefills: Sequence[Prefill]
    variants: Sequence[Variant]
    ratios: Sequence[float]
    budgets: Sequence[int]
    weights: str
    folder: Path
    told: list[str]
    command: str

    def cells(self, blank: bool) -> list[Cell]:
        """The cells of a task, with the blank image or without."""
        each = self.config.protocol.each()
        protocols = [(one.name, one.tail if one.name == "replay" else None) for one in each]
        return expand(self.variants, self.ratios, self.budgets, blank, protocols, self.prefills)


def validate(config: Config, here: bool = True) -> Job:
    """Check everything that needs no model, cheapest first; `here`: this machine is to answer."""
    ratios, budgets = check(config)
    chosen_tasks = tasks.expand(config)
    tasks.check_data(chosen_tasks)
    if here:
        check_machine(config)
    weights = identify(config.model.pretrained, config.model.revision)
    chosen = variants(config.methods, sweep_wide(config), cache_wide(config))
    check_anchors(chosen, config.protocol.each())
    _check_parts(chosen, config.model)
    ways = prefills(config.prefills)
    check_rows(ways, chosen)
    effective = {one.label: {"method": one.method, **dict(one.params)} for one in chosen}
    read = {one.label: dict(one.pattern) or {"pattern": one.label} for one in ways}
    config = replace(config, methods=effective, prefills=read)
    pairs, left_out = contrasts(chosen, config.analysis.contrasts)
    config = replace(config, analysis=replace(config.analysis, contrasts=pairs))
    stored = {name: value for name, value in cache_wide(config).items() if name == "cache"}
    told = [*untouched(chosen, sweep_wide(config) | stored), *left_out]
    config = replace(config, model=_with_images(config.model))
    for task in chosen_tasks:
        if task.config.images:
            refuse_images(task.name, config.model)
    told += _without_template(config.model)
    folder = Path(config.run.dir) / config.run.name
    cells = (ways, chosen, ratios, budgets)
    return Job(config, chosen_tasks, *cells, weights, folder, told, command())


def _with_images(model: ModelConfig) -> ModelConfig:
    """The model's settings with what it says itself of images where they say nothing.

    Raises:
        UserError: the settings promise images and the model takes none.
    """
    from harness.models import tokenizer  # late: it needs transformers

    own = tokenizer.takes_images(model.pretrained, model.revision, model.trust_remote_code)
    if model.images and own is False:
        raise UserError(
            f"model={model.name} takes no images although its settings say so: leave model.images "
            "out and choose a text task."
        )
    return replace(model, images=own if model.images is None else model.images)


def _without_template(model: ModelConfig) -> list[str]:
    """What to say of a model whose prompts are plain text."""
    from harness.models import tokenizer  # late: it needs transformers

    given = (model.pretrained, model.revision, model.trust_remote_code)
    if model.chat_template is not None or tokenizer.has_template(*given) is not False:
        return []
    return [
        f"{model.name} comes without a chat template, so its prompts are the plain text of the "
        "task; give model.chat_template=FILE if it was trained for chats."
    ]


def _check_parts(chosen: Sequence[Variant], model: ModelConfig) -> None:
    """Raise UserError where the model's keys cannot be cut into the parts that are asked for."""
    caches = [parted(dict(one.params))[1] for one in chosen]
    wanted = dict.fromkeys(each.parts for each in caches if isinstance(each, PQKeys))
    if not wanted:
        return
    from harness.models import tokenizer  # late: it needs transformers

    dim = tokenizer.key_length(model.pretrained, model.revision, model.trust_remote_code)
    if dim is None:
        return  # the first prompt will tell
    for parts in wanted:
        if reason := uncut(dim, parts):
            raise UserError(reason)


def check_machine(config: Config) -> None:
    """Raise UserError for a device or kernels that this machine does not have."""
    if config.ray.address is not None:  # the workers' machines need not be like this one
        return
    plain = config.device in ("auto", "cpu") and config.engine.kernels != "triton"
    if plain and config.engine.cuda_graphs is not True:
        return
    from harness.engine import check_device  # late: only some settings need to know
    from harness.models.devices import device_of

    try:
        check_device(device_of(config.device), config.engine.kernels, config.engine.cuda_graphs)
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}.") from error
