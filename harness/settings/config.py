"""Typed settings, as Hydra composes them; `harness.settings.checks` says what their values may be.

Knows Hydra; must not know the methods, lmms-eval, the engine or the store.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from harness.errors import UserError
from harness.settings import caches

PROTOCOLS = ("replay", "context", "paper")
BOTH = ("replay", "context")  # what protocol=both stands for
TAILS = ("last_token", "suffix")
DTYPES = ("auto", "float32", "float16", "bfloat16")
KERNELS = ("auto", "triton", "torch")
WANDB_MODES = ("offline", "online", "disabled")
SCORERS = ("auto", "mmbench")
EXTRACTIONS = ("lmms_eval", "strict")
INVALID = ("refuse", "skip")
SWEEP_WIDE = ("decode", "buffer", "budget", "positions", "protect", "merge", "window_anchor")
CACHE_WIDE = caches.NAMES
HOME = Path(__file__).resolve().parents[2]
EMBEDDED = HOME / "harness" / "embedded"
CONF = HOME / "conf"


@dataclass
class ModelConfig:
    """A transformers checkpoint; `caveat` goes into the summary of the embedded one.

    pretrained: a folder, a GGUF file, package:<name> of an installed package that holds one, or a
    hub id. images: whether it takes images; null: as its config.json says. max_length: the longest
    prompt and answer together, in tokens; null: what the model's own settings say. max_prompt:
    tokens to which the text of a task that may be cut is cut before the chat template, LongBench's
    max_length; null: what max_length leaves. chat_template: a file with a chat template in the
    place of the model's own; without either a prompt is its plain text, with the image tokens where
    images were shown. tile: pixels of a side; a larger image is cut into tiles of this size, up to
    36, each an image of the prompt; null: the processor does what it does.
    """

    name: str = MISSING
    pretrained: str = MISSING
    revision: str | None = None
    images: bool | None = None
    trust_remote_code: bool = False
    caveat: str | None = None
    max_length: int | None = None
    max_prompt: int | None = None
    chat_template: str | None = None
    tile: int | None = None


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
    """When the cache is compacted: one of PROTOCOLS, or both; `tail` matters for `replay` only."""

    name: str = MISSING
    tail: str = "last_token"

    def each(self) -> list["ProtocolConfig"]:
        """The protocols by themselves."""
        names = BOTH if self.name == "both" else (self.name,)
        return [ProtocolConfig(name, self.tail) for name in names]


@dataclass
class RunConfig:
    """Where the results go: the folder `dir`/`name`; name empty: made of what is asked.

    report_every: how long from one report to the next while answers come, such as 90s, 10m or 1h;
    null: none before the end.
    """

    name: str = ""
    dir: str = "results/runs"
    report_every: str | None = None


@dataclass
class StoreConfig:
    """The answers store. repair: drop what is damaged in it and compute that anew."""

    repair: bool = False


@dataclass
class EngineConfig:
    """How many cells decode as one batch, and CPU threads: "auto" or a count each.

    kernels: who computes the policies: "auto", "triton" or "torch". cuda_graphs: replay decoding
    steps of cells that do not hold their budget: true, false, or "auto", on CUDA devices.
    share_prefixes: read what prompts have in common once.
    """

    cells_per_batch: Any = "auto"
    threads: Any = "auto"
    kernels: str = "auto"
    cuda_graphs: Any = "auto"
    share_prefixes: bool = True


@dataclass
class ContrastConfig:
    """Two labels that are compared at each setting: what `label` does beside `against`.

    called: what makes the difference, as the subject of a sentence. varies: the parameters in which
    the two may differ, or method where they are two methods. asks: the question of a run about
    `label`; see AnalysisConfig.question.
    """

    label: str = ""
    against: str = ""
    called: str = ""
    varies: list[str] = field(default_factory=list)
    asks: str = ""


@dataclass
class AnalysisConfig:
    """The plan of the analysis, recorded before the first answer.

    method: the label that the question is about. control: the label whose loss shows that a setting
    can tell methods apart. margin: points of the score that may be lost. alpha: one-sided level.
    power: at which detectable losses are stated. above: evicted fraction above which settings
    belong to the question. resamples: of the bootstrap. contrasts: pairs of labels that are
    compared where both are chosen. question: what is asked; {method}, {score}, {tasks}, {model} and
    {above} stand for what their names say; empty: what the method's own contrast asks, or whether
    the method keeps the score.
    """

    method: str = "restkv"
    control: str = "random"
    margin: float = 2.0
    alpha: float = 0.05
    power: float = 0.8
    above: float = 0.5
    resamples: int = 9999
    contrasts: list[ContrastConfig] = field(default_factory=list)
    question: str = ""


@dataclass
class RayConfig:
    """The cluster that `workers` are started on. address: such as auto or host:port; null: Ray is
    started on this machine.
    """

    address: str | None = None


@dataclass
class WandbConfig:
    """Where the tables go besides the run folder."""

    mode: str = "offline"
    project: str = "evictbench"


@dataclass
class Config:
    """Everything a run depends on; `methods` maps a label to {method, parameters...}.

    The names of SWEEP_WIDE are for every chosen method that has them and sets nothing else, those
    of CACHE_WIDE for every one but the full cache, `extraction` for every MMBench task that sets
    none. `prefills` maps a label to {pattern, parameters...}: how prompts are read, each way for
    cells of its own. shard: which part of the questions this process answers, see
    `settings.shards`. workers: processes that answer it together, see `settings.workers`; null or
    1: this one.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    prefills: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, Any] = field(default_factory=dict)
    ratios: Any = None
    budgets: Any = None
    limit: int | None = None
    blank_image: bool = True
    extraction: str = "lmms_eval"
    decode: str | None = None
    buffer: int | None = None
    budget: Any = None
    positions: str | None = None
    protect: str | None = None
    merge: str | None = None
    window_anchor: str | None = None
    cache: str | None = None
    cache_bits: int | None = None
    cache_group: int | None = None
    cache_residual: int | None = None
    cache_parts: int | None = None
    cache_mass: float | None = None
    seed: int = 0
    shard: str | None = None
    workers: Any = "auto"
    device: str = "auto"
    dtype: str = "auto"
    engine: EngineConfig = field(default_factory=EngineConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    run: RunConfig = field(default_factory=RunConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def register() -> None:
    """Make the schema and the resolver `embedded` known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("embedded", lambda name: str(EMBEDDED / name), replace=True)


def as_config(cfg: DictConfig) -> Config:
    """Turn composed settings into the dataclass; UserError for names that no field has."""
    try:
        config = OmegaConf.to_object(cfg)
    except OverflowError as error:
        raise UserError(f"A number among the settings is too large ({error}).") from error
    assert isinstance(config, Config)
    for name, usual in vars(Config()).items():  # a reference to another setting may be anything
        found = getattr(config, name)
        if (isinstance(usual, dict) or is_dataclass(usual)) and not isinstance(found, type(usual)):
            raise UserError(f"{name}={found!r} is no group of settings: leave it out.")
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
