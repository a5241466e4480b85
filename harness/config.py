"""Typed settings and the checks that run before any model loads.

Knows Hydra; must not know the methods, lmms-eval, the engine or the store.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from harness.errors import UserError

PROTOCOLS = ("replay", "context", "paper")
TAILS = ("last_token", "suffix")
DTYPES = ("auto", "float32", "float16", "bfloat16")
KERNELS = ("auto", "triton", "torch")
WANDB_MODES = ("offline", "online", "disabled")
SCORERS = ("auto", "mmbench")
EXTRACTIONS = ("lmms_eval", "strict")
INVALID = ("refuse", "skip")
SWEEP_WIDE = ("decode", "budget", "positions", "protect", "window_anchor")
EMBEDDED = Path(__file__).resolve().parent / "embedded"
CONF = Path(__file__).resolve().parent.parent / "conf"


@dataclass
class ModelConfig:
    """A transformers checkpoint: a local folder or a hub id; `caveat` goes into the summary of the
    embedded one.

    max_length: the longest prompt and answer together, in tokens; null: what the model's own
    settings say. max_prompt: tokens to which the text of a task that may be cut is cut before the
    chat template, LongBench's max_length; null: what max_length leaves.
    """

    name: str = MISSING
    pretrained: str = MISSING
    revision: str | None = None
    images: bool = True
    trust_remote_code: bool = False
    caveat: str | None = None
    max_length: int | None = None
    max_prompt: int | None = None


@dataclass
class TaskConfig:
    """A task or a group of tasks of lmms-eval, and what this harness changes in it.

    lmms_task: its name in lmms-eval, one of this project's own tasks among them. images: whether
    its prompts show images; null: as the task itself says. overrides: replaces fields of the
    task's YAML, such as dataset_path. generation: merged into its generation arguments. scorer:
    how an answer becomes a score. extraction: how MMBench answers are read. data: the generator of
    its data and what that takes; `lengths` in it makes a task of each. blank_image: the control;
    null: as the run's. invalid: what to do with rows that cannot be scored: refuse the data, or
    skip their questions.
    """

    lmms_task: str = MISSING
    images: bool | None = None
    scorer: str = "auto"
    extraction: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    blank_image: bool | None = None
    invalid: str = "refuse"


@dataclass
class ProtocolConfig:
    """When the cache is compacted; `tail` matters for `replay` only."""

    name: str = MISSING
    tail: str = "last_token"


@dataclass
class RunConfig:
    """Where the results go: the folder `dir`/`name`."""

    name: str = MISSING
    dir: str = "results/runs"


@dataclass
class EngineConfig:
    """How many cells decode as one batch, and CPU threads: "auto" or a count each.

    kernels: who computes the policies: "auto", "triton" or "torch". cuda_graphs: replay decoding
    steps of batches in which no cell holds its budget.
    """

    cells_per_batch: Any = "auto"
    threads: Any = "auto"
    kernels: str = "auto"
    cuda_graphs: bool = False


@dataclass
class AnalysisConfig:
    """The plan of the analysis, recorded before the first answer.

    method: the label that the question is about. control: the label whose loss shows that a setting
    can tell methods apart. margin: points of the score that may be lost. alpha: one-sided level.
    power: at which detectable losses are stated. above: evicted fraction above which settings
    belong to the question. resamples: of the bootstrap.
    """

    method: str = "restkv"
    control: str = "random"
    margin: float = 2.0
    alpha: float = 0.05
    power: float = 0.8
    above: float = 0.5
    resamples: int = 9999


@dataclass
class WandbConfig:
    """Where the tables go besides the run folder."""

    mode: str = "offline"
    project: str = "evictbench"


@dataclass
class Config:
    """Everything a run depends on; `methods` maps a label to {method, parameters...}.

    The names of SWEEP_WIDE are for every chosen method that has them and sets nothing else,
    `extraction` for every MMBench task that sets none.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    methods: dict[str, Any] = field(default_factory=dict)
    ratios: Any = None
    budgets: Any = None
    limit: int | None = None
    blank_image: bool = True
    extraction: str = "lmms_eval"
    decode: str | None = None
    budget: Any = None
    positions: str | None = None
    protect: str | None = None
    window_anchor: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    engine: EngineConfig = field(default_factory=EngineConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    run: RunConfig = field(default_factory=RunConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def register() -> None:
    """Make the schema and the resolvers `embedded`, `marks` and `joined` known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("joined", lambda names: "+".join(names), replace=True)
    OmegaConf.register_new_resolver("embedded", lambda name: str(EMBEDDED / name), replace=True)
    OmegaConf.register_new_resolver("marks", _marks, replace=True)


def _marks(*values: object) -> str:
    """The values that are given, each behind a hyphen, for the name of a run."""
    return "".join(f"-{value}" for value in values if value is not None)


def as_config(cfg: DictConfig) -> Config:
    """Turn composed settings into the dataclass; UserError for names that no field has."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    _refuse_unknown(config, OmegaConf.to_container(cfg, resolve=True), "")
    return config


def _refuse_unknown(node: Any, given: Any, prefix: str) -> None:
    known = {f.name for f in fields(node)}
    for name, value in given.items():
        if name not in known:
            raise UserError(
                f"{prefix}{name} is not a setting: {prefix.rstrip('.') or 'the top level'} takes "
                f"{', '.join(sorted(known))}."
            )
        own = getattr(node, name)
        if is_dataclass(own):
            _refuse_unknown(own, value, f"{prefix}{name}.")
        elif isinstance(own, dict) and any(map(is_dataclass, own.values())):
            for key, inner in own.items():
                _refuse_unknown(inner, value[key], f"{prefix}{name}.{key}.")


def check(config: Config) -> tuple[list[float], list[int]]:
    """Validate all settings but the methods, which `variants` does.

    Returns:
        The ratios and the budgets; one of the two is empty.

    Raises:
        UserError: a value is outside what is allowed.
    """
    _one_of("protocol.name", config.protocol.name, PROTOCOLS)
    _one_of("protocol.tail", config.protocol.tail, TAILS)
    _one_of("dtype", config.dtype, DTYPES)
    _one_of("extraction", config.extraction, EXTRACTIONS)
    _check_tasks(config)
    _one_of("wandb.mode", config.wandb.mode, WANDB_MODES)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise UserError(f"device={config.device} is not a device: use auto, cpu, cuda or cuda:<n>.")
    if config.limit is not None and config.limit < 1:
        raise UserError(
            f"limit={config.limit} asks for no question: use a whole number of questions from 1, "
            "or limit=null for all of them."
        )
    if config.seed < 0:
        raise UserError(f"seed={config.seed} is negative: use a whole number from 0.")
    if not isinstance(config.budget, str | None):
        raise UserError(
            f"budget={config.budget} is not a rule: budget says how layers and heads share the "
            "kept tokens (such as budget=pyramid), and counts of them are 'budgets=[16,64]'."
        )
    _check_count("engine.cells_per_batch", config.engine.cells_per_batch)
    _check_count("engine.threads", config.engine.threads)
    _one_of("engine.kernels", config.engine.kernels, KERNELS)
    _check_analysis(config.analysis)
    check_name("run.name", config.run.name)
    return amounts(config.ratios, config.budgets)


def _check_analysis(analysis: AnalysisConfig) -> None:
    limits = {"margin": (0, 100), "alpha": (0, 0.5), "power": (0, 1), "above": (-1, 1)}
    for name, (low, high) in limits.items():
        value = getattr(analysis, name)
        if not low < value < high:
            raise UserError(
                f"analysis.{name}={value:g} is out of range: use a number between {low:g} and "
                f"{high:g}."
            )
    if analysis.control == analysis.method:
        raise UserError(
            f"analysis.control={analysis.control} is the method that the question is about: name "
            "another, such as random."
        )
    if analysis.resamples < 100:
        raise UserError(
            f"analysis.resamples={analysis.resamples} is too few for an interval: use 100 or more."
        )


def _check_tasks(config: Config) -> None:
    if not config.tasks:
        raise UserError("task=[] asks nothing: name at least one, such as task=mmbench_mini.")
    for name, task in config.tasks.items():
        check_name("tasks", name)
        _one_of(f"tasks.{name}.scorer", task.scorer, SCORERS)
        _one_of(f"tasks.{name}.invalid", task.invalid, INVALID)
        if task.extraction is not None:
            _one_of(f"tasks.{name}.extraction", task.extraction, EXTRACTIONS)
        if task.images:
            refuse_images(name, config.model)
    for name in ("max_length", "max_prompt"):
        limit = getattr(config.model, name)
        if limit is not None and limit < 2:
            raise UserError(f"model.{name}={limit} holds no prompt: use more tokens.")


def refuse_images(task: str, model: ModelConfig) -> None:
    """Raise UserError where a task shows images and the model reads text only."""
    if not model.images:
        raise UserError(
            f"task={task} shows images and model={model.name} reads text only: choose an "
            "image-text model, or a text task."
        )


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={value} is not known: use one of {', '.join(allowed)}.")


def _check_count(name: str, value: object) -> None:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{name}={value} is not a count: use auto or a number from 1.")


def check_name(name: str, value: str) -> None:
    """Raise UserError for what cannot name a folder or a label."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._=+-]*", value):
        raise UserError(
            f"{name}={value!r} cannot name a folder or a label: use letters, digits and . _ - = +, "
            "beginning with a letter, a digit or _."
        )


def amounts(ratios: Any, budgets: Any) -> tuple[list[float], list[int]]:
    """Check ratios (evicted fractions) or, where given in their place, budgets (kept tokens).

    Raises:
        UserError: nothing is given, or a value is out of range.
    """
    if budgets is not None:
        return [], _budgets(budgets)
    if not isinstance(ratios, Sequence) or isinstance(ratios, str) or not ratios:
        raise UserError(
            f"ratios={ratios} is not a list that holds something: give numbers from 0 up to, not "
            "including, 1, such as 'ratios=[0.5,0.9]'."
        )
    for ratio in ratios:
        number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
        if not number or not math.isfinite(ratio) or not 0 <= ratio < 1:
            raise UserError(
                f"ratios has {ratio!r}: a ratio is the evicted fraction, a number from 0 up to, "
                "not including, 1, such as 0.9."
            )
    return list(dict.fromkeys(float(ratio) for ratio in ratios)), []


def _budgets(budgets: Any) -> list[int]:
    if not isinstance(budgets, Sequence) or isinstance(budgets, str) or not budgets:
        raise UserError(
            f"budgets={budgets} is not a list that holds something: give token counts from 1, such "
            "as 'budgets=[16,64]', or budgets=null to use ratios."
        )
    for budget in budgets:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise UserError(
                f"budgets has {budget!r}: a budget is the number of kept tokens a head, a whole "
                "number from 1."
            )
    return list(dict.fromkeys(budgets))
