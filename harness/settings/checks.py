"""The checks of settings that run before anything heavy loads: each is a sentence with a remedy.

Knows settings and the files in conf/; must not know the methods, lmms-eval, the engine or the
store.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.settings.amounts import amounts
from harness.settings.analysis import check_analysis
from harness.settings.bounds import (
    NAME,
    SEEDS,
    TOKENS,
    at_most,
    check_count,
    check_folder,
    check_name,
    check_values,
    one_of,
    seconds,
    shortened,
)
from harness.settings.caches import CACHES, FULL_PRECISION
from harness.settings.config import (
    DTYPES,
    EXTRACTIONS,
    INVALID,
    KERNELS,
    PROTOCOLS,
    SCORERS,
    TAILS,
    WANDB_MODES,
    Config,
    ModelConfig,
)
from harness.settings.shards import shard_of
from harness.settings.workers import check_workers

NEW_TOKENS = 1_000_000
CELLS = 1_000_000


def check(config: Config) -> tuple[list[float], list[int]]:
    """Validate all settings but the methods, which `variants` does.

    Sets `ratios` and `budgets` of `config` to what they come to, the other one to None.

    Returns:
        The ratios and the budgets; one of the two is empty.

    Raises:
        UserError: a value is outside what is allowed.
    """
    check_values(config)
    one_of("protocol.name", config.protocol.name, ("both", *PROTOCOLS))
    one_of("protocol.tail", config.protocol.tail, TAILS)
    one_of("dtype", config.dtype, DTYPES)
    one_of("extraction", config.extraction, EXTRACTIONS)
    one_of("cache", config.cache or FULL_PRECISION, CACHES)
    _check_model(config.model)
    _check_tasks(config)
    one_of("wandb.mode", config.wandb.mode, WANDB_MODES)
    _check_project(config.wandb.project)
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", config.device):
        raise UserError(f"device={config.device} is not a device: use auto, cpu, cuda or cuda:<n>.")
    if config.limit is not None and config.limit < 1:
        raise UserError(
            f"limit={config.limit} asks for no question: use a whole number of questions from 1, "
            "or limit=null for all of them."
        )
    at_most("limit", config.limit, TOKENS, "or limit=null for all questions")
    shard_of(config.shard)
    check_workers(config.workers, config.ray.address, config.device)
    if config.seed < 0:
        raise UserError(f"seed={config.seed} is negative: use a whole number from 0.")
    at_most("seed", config.seed, SEEDS)
    if not isinstance(config.budget, str | None):
        raise UserError(
            f"budget={config.budget} is not a rule: budget says how layers and heads share the "
            "kept tokens (such as budget=pyramid), and counts of them are 'budgets=[16,64]'."
        )
    check_count("engine.cells_per_batch", config.engine.cells_per_batch, CELLS)
    check_count("engine.threads", config.engine.threads, max(16, 4 * (os.cpu_count() or 1)))
    one_of("engine.kernels", config.engine.kernels, KERNELS)
    graphs = config.engine.cuda_graphs
    if not isinstance(graphs, bool) and graphs != "auto":
        raise UserError(
            f"engine.cuda_graphs={shortened(graphs)} is not known: use auto, true or false."
        )
    check_analysis(config.analysis, config.methods)
    if config.run.name:  # else it is made of what is asked
        check_name("run.name", config.run.name)
    if config.run.name == "answers":
        raise UserError("run.name=answers is the folder of all answers: choose another name.")
    check_folder("run.dir", config.run.dir)
    seconds("run.report_every", config.run.report_every)
    ratios, budgets = amounts(config.ratios, config.budgets)
    config.ratios, config.budgets = ratios or None, budgets or None
    return ratios, budgets


def check_typed(typed: Sequence[str]) -> None:
    """Raise UserError for settings of one command line that exclude each other."""
    given = dict(one.lstrip("+").partition("=")[::2] for one in typed)
    both = {name: given.get(name, "null") for name in ("ratios", "budgets")}
    if not any(value.strip().lower() in ("null", "none", "") for value in both.values()):
        raise UserError(
            f"ratios={both['ratios']} and budgets={both['budgets']} are two ways to say how much "
            "is kept: give one of the two."
        )
    for name in ("model", "protocol"):
        if "," in given.get(name, ""):
            raise UserError(
                f"{name}={given[name]} chooses several and a run has one: choose one, or give them "
                "without brackets behind -m for a run each."
            )


def _check_model(model: ModelConfig) -> None:
    if not model.name or len(model.name) > NAME:
        raise UserError(
            f"model.name={shortened(model.name)!r} cannot be shown in a table: use 1 to {NAME} "
            "characters."
        )
    check_folder("model.pretrained", model.pretrained)
    for name in ("max_length", "max_prompt"):
        limit = getattr(model, name)
        if limit is not None and limit < 2:
            raise UserError(f"model.{name}={limit} holds no prompt: use more tokens.")
        at_most(f"model.{name}", limit, TOKENS, "or null for what the model's own settings say")
    if model.tile is not None:
        check_count("model.tile", model.tile, 16_384, "")
    here = model.pretrained.startswith("package:") or Path(model.pretrained).expanduser().exists()
    template_of(model)
    if model.revision is not None and here:
        raise UserError(
            f"model.revision={model.revision} is of a hub id, and model.pretrained="
            f"{model.pretrained} is on this machine and has none: leave model.revision out."
        )


def template_of(model: ModelConfig) -> str | None:
    """The text of the chat template that the settings give; UserError where it cannot be read."""
    if model.chat_template is None:
        return None
    place = f"model.chat_template={shortened(model.chat_template)}"
    remedy = "name a file with a Jinja template"
    try:
        text = Path(model.chat_template).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"{place} cannot be read ({why}): {remedy}.") from error
    if not text.strip():
        raise UserError(f"{place} is empty: {remedy}.")
    return text


def _check_tasks(config: Config) -> None:
    if not config.tasks:
        raise UserError("task=[] asks nothing: name at least one, such as task=mmbench_mini.")
    for name, task in config.tasks.items():
        check_name("tasks", name)
        one_of(f"tasks.{name}.scorer", task.scorer, SCORERS)
        one_of(f"tasks.{name}.invalid", task.invalid, INVALID)
        if task.extraction is not None:
            one_of(f"tasks.{name}.extraction", task.extraction, EXTRACTIONS)
        if task.images:
            refuse_images(name, config.model)
        for key in ("max_new_tokens", "max_gen_toks"):
            if task.generation.get(key) is not None:
                check_count(f"tasks.{name}.generation.{key}", task.generation[key], NEW_TOKENS, "")
        _check_data(name, task.data or {})


def _check_data(task: str, data: Mapping[str, Any]) -> None:
    """Counts of generated data; its generator checks the rest."""
    for key, most in (("samples", 100_000), ("seed", SEEDS)):
        if type(data.get(key)) is int:
            at_most(f"tasks.{task}.data.{key}", data[key], most)
    lengths = data.get("lengths")
    for length in lengths if isinstance(lengths, list) else ():
        if type(length) is int:
            at_most(f"tasks.{task}.data.lengths", length, 100_000_000)


def refuse_images(task: str, model: ModelConfig) -> None:
    """Raise UserError where a task shows images and the model reads text only."""
    if model.images is False:
        raise UserError(
            f"task={task} shows images and model={model.name} reads text only: choose an "
            "image-text model, or a text task."
        )


def _check_project(value: str) -> None:
    if not value or len(value) > 128 or re.search(r"[/\\#?%:]", value):
        raise UserError(
            f"wandb.project={shortened(value)!r} cannot name a project of wandb: use 1 to 128 "
            "characters other than / \\ # ? % and :."
        )
