"""The checks of settings that run before anything heavy loads: each is a sentence with a remedy.

Knows settings and the files in conf/; must not know the methods, lmms-eval, the engine or the
store.
"""

import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.settings.config import (
    CONF,
    DTYPES,
    EXTRACTIONS,
    INVALID,
    KERNELS,
    PROTOCOLS,
    SCORERS,
    TAILS,
    WANDB_MODES,
    AnalysisConfig,
    Config,
    ContrastConfig,
    ModelConfig,
)

SEEDS = 2**32 - 1  # the largest that numpy takes
TOKENS = 2**31 - 1  # more than any prompt has
NEW_TOKENS = 1_000_000
CELLS = 1_000_000
DIGITS = 6  # decimals of a ratio: tables show no more
NAME = 200  # characters of a name: with what is added to it, a file system takes 255 bytes
PATH = 3_000  # characters of a path, of 4,096
ASKED = {"method", "score", "tasks", "model", "above"}  # what a question may name
FREE = re.compile(r"tasks\.[^.]+\.(generation|overrides|data)\.|model\.caveat")  # may hold lines


def check(config: Config) -> tuple[list[float], list[int]]:
    """Validate all settings but the methods, which `variants` does.

    Sets `ratios` and `budgets` of `config` to what they come to, the other one to None.

    Returns:
        The ratios and the budgets; one of the two is empty.

    Raises:
        UserError: a value is outside what is allowed.
    """
    _check_values(config)
    _one_of("protocol.name", config.protocol.name, PROTOCOLS)
    _one_of("protocol.tail", config.protocol.tail, TAILS)
    _one_of("dtype", config.dtype, DTYPES)
    _one_of("extraction", config.extraction, EXTRACTIONS)
    _check_model(config.model)
    _check_tasks(config)
    _one_of("wandb.mode", config.wandb.mode, WANDB_MODES)
    _check_project(config.wandb.project)
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", config.device):
        raise UserError(f"device={config.device} is not a device: use auto, cpu, cuda or cuda:<n>.")
    if config.limit is not None and config.limit < 1:
        raise UserError(
            f"limit={config.limit} asks for no question: use a whole number of questions from 1, "
            "or limit=null for all of them."
        )
    _at_most("limit", config.limit, TOKENS, "or limit=null for all questions")
    if config.seed < 0:
        raise UserError(f"seed={config.seed} is negative: use a whole number from 0.")
    _at_most("seed", config.seed, SEEDS)
    if not isinstance(config.budget, str | None):
        raise UserError(
            f"budget={config.budget} is not a rule: budget says how layers and heads share the "
            "kept tokens (such as budget=pyramid), and counts of them are 'budgets=[16,64]'."
        )
    _check_count("engine.cells_per_batch", config.engine.cells_per_batch, CELLS)
    _check_count("engine.threads", config.engine.threads, max(16, 4 * (os.cpu_count() or 1)))
    _one_of("engine.kernels", config.engine.kernels, KERNELS)
    _check_analysis(config.analysis, config.methods)
    if config.run.name:  # else it is made of what is asked
        check_name("run.name", config.run.name)
    if config.run.name == "answers":
        raise UserError("run.name=answers is the folder of all answers: choose another name.")
    _check_folder("run.dir", config.run.dir)
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


def _check_values(config: Config) -> None:
    """Refuse what no file, table or record can hold: odd characters, and numbers that are none."""
    for name, value in _values(config):
        if isinstance(value, float) and not math.isfinite(value) and FREE.match(name):
            raise UserError(f"{name}={value} is no number: give another value.")
        if not isinstance(value, str):
            continue
        bad = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs")), None)
        if bad is not None and (not FREE.match(name) or bad not in "\n\t\r"):
            raise UserError(
                f"{name}={value!r} holds the character {bad!r}, which is not text: leave it out."
            )


def _values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested settings with the dotted name of its place; keys are values too."""
    if is_dataclass(node):
        for one in fields(node):
            yield from _values(getattr(node, one.name), f"{prefix}{one.name}.")
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield f"a name in {prefix.rstrip('.')}", str(key)
            yield from _values(value, f"{prefix}{key}.")
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _values(value, prefix)
    else:
        yield prefix.rstrip("."), node


def _check_analysis(analysis: AnalysisConfig, methods: Mapping[str, object]) -> None:
    limits = {
        "margin": (0.01, 99.99),
        "alpha": (1e-6, 0.499),
        "power": (0.01, 0.9999),
        "above": (-0.999, 0.999),
    }
    for name, (low, high) in limits.items():
        value = getattr(analysis, name)
        if not low <= value <= high:
            raise UserError(
                f"analysis.{name}={value:g} is out of range: use a number from {low:g} to {high:g}."
            )
    known = {*methods, *(path.stem for path in (CONF / "method").glob("*.yaml"))} - {"full"}
    for name in ("method", "control"):
        label = getattr(analysis, name)
        if label not in known:
            raise UserError(
                f"analysis.{name}={label} is no method: name one of those chosen "
                f"({', '.join(methods)}), or another of {', '.join(sorted(known - {*methods}))}."
            )
    _check_contrasts(analysis.contrasts, known)
    for text in (analysis.question, *(pair.asks for pair in analysis.contrasts)):
        if unknown := {*re.findall(r"{(.*?)}", text)} - ASKED:
            raise UserError(
                f"The question {text!r} has {{{min(unknown)}}}: what may stand in brackets is "
                f"{', '.join(sorted(ASKED))}."
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
    _at_most("analysis.resamples", analysis.resamples, 100_000)


def _check_contrasts(contrasts: Sequence[ContrastConfig], known: Set[str]) -> None:
    for place, pair in enumerate(contrasts):
        name = f"analysis.contrasts[{place}]"
        missing = [part for part in ("label", "against", "called") if not getattr(pair, part)]
        if missing:
            raise UserError(
                f"{name} has no {missing[0]}: give label, against and called, such as "
                "{label: restkv, against: snapkv, called: reconstruction, varies: [method]}."
            )
        for label in (pair.label, pair.against):
            if label not in known:
                raise UserError(
                    f"{name} compares {label}, which is no method: name a label that is chosen."
                )
        if pair.label == pair.against:
            raise UserError(f"{name} compares {pair.label} with itself: name another label.")
        if any((one.label, one.against) == (pair.label, pair.against) for one in contrasts[:place]):
            raise UserError(
                f"{name} compares {pair.label} with {pair.against} once more: leave it out."
            )


def _check_model(model: ModelConfig) -> None:
    if not model.name or len(model.name) > NAME:
        raise UserError(
            f"model.name={shortened(model.name)!r} cannot be shown in a table: use 1 to {NAME} "
            "characters."
        )
    _check_folder("model.pretrained", model.pretrained)
    for name in ("max_length", "max_prompt"):
        limit = getattr(model, name)
        if limit is not None and limit < 2:
            raise UserError(f"model.{name}={limit} holds no prompt: use more tokens.")
        _at_most(f"model.{name}", limit, TOKENS, "or null for what the model's own settings say")
    if model.revision is not None and Path(model.pretrained).expanduser().is_dir():
        raise UserError(
            f"model.revision={model.revision} is of a hub id, and model.pretrained="
            f"{model.pretrained} is a folder, which has none: leave model.revision out."
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
        for key in ("max_new_tokens", "max_gen_toks"):
            if task.generation.get(key) is not None:
                _check_count(f"tasks.{name}.generation.{key}", task.generation[key], NEW_TOKENS, "")
        _check_data(name, task.data or {})


def _check_data(task: str, data: Mapping[str, Any]) -> None:
    """Counts of generated data; its generator checks the rest."""
    for key, most in (("samples", 100_000), ("seed", SEEDS)):
        if type(data.get(key)) is int:
            _at_most(f"tasks.{task}.data.{key}", data[key], most)
    lengths = data.get("lengths")
    for length in lengths if isinstance(lengths, list) else ():
        if type(length) is int:
            _at_most(f"tasks.{task}.data.lengths", length, 100_000_000)


def refuse_images(task: str, model: ModelConfig) -> None:
    """Raise UserError where a task shows images and the model reads text only."""
    if not model.images:
        raise UserError(
            f"task={task} shows images and model={model.name} reads text only: choose an "
            "image-text model, or a text task."
        )


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={shortened(value)} is not known: use one of {', '.join(allowed)}.")


def _check_count(name: str, value: object, most: int, other: str = "auto or ") -> None:
    if value == "auto" and other:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"{name}={shortened(value)} is not a count: use {other}a whole number from 1."
        )
    _at_most(name, value, most)


def _at_most(name: str, value: int | None, most: int, other: str = "") -> None:
    if value is not None and value > most:
        also = f", {other}" if other else ""
        raise UserError(
            f"{name}={shortened(value)} is too large: use a whole number up to {most:,}{also}."
        )


def check_name(name: str, value: str) -> None:
    """Raise UserError for what cannot name a folder or a label."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._=+-]*", value):
        raise UserError(
            f"{name}={shortened(value)!r} cannot name a folder or a label: use letters, digits and "
            ". _ - = +, beginning with a letter, a digit or _."
        )
    if len(value) > NAME:
        raise UserError(
            f"{name}={shortened(value)} has {len(value)} characters, too many for a folder: use "
            f"{NAME} at most."
        )


def _check_folder(name: str, value: str) -> None:
    if not value.strip():
        raise UserError(f"{name} is empty: name a folder.")
    if len(value) > PATH or any(len(os.fsencode(part)) > 255 for part in Path(value).parts):
        raise UserError(f"{name}={shortened(value)} is too long for a file system: use a shorter.")


def _check_project(value: str) -> None:
    if not value or len(value) > 128 or re.search(r"[/\\#?%:]", value):
        raise UserError(
            f"wandb.project={shortened(value)!r} cannot name a project of wandb: use 1 to 128 "
            "characters other than / \\ # ? % and :."
        )


def shortened(value: object, most: int = 80) -> str:
    """A value as text that fits a sentence."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 20]}...{text[-10:]}"


def amounts(ratios: Any, budgets: Any) -> tuple[list[float], list[int]]:
    """Check ratios (evicted fractions) or, where given in their place, budgets (kept tokens).

    Raises:
        UserError: nothing is given, or a value is out of range.
    """
    if budgets is not None:
        return [], _budgets(budgets)
    if not isinstance(ratios, Sequence) or isinstance(ratios, str) or not ratios:
        raise UserError(
            f"ratios={shortened(ratios)} is not a list that holds something: give numbers from 0 "
            "up to, not including, 1, such as 'ratios=[0.5,0.9]'."
        )
    for ratio in ratios:
        number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
        if not number or not math.isfinite(ratio) or not 0 <= ratio < 1:
            raise UserError(
                f"ratios has {shortened(repr(ratio))}: a ratio is the evicted fraction, a number "
                "from 0 up to, not including, 1, such as 0.9."
            )
        if round(ratio, DIGITS) != ratio:
            raise UserError(
                f"ratios has {ratio!r}, which tables would show as {ratio:g}: give at most "
                f"{DIGITS} decimals."
            )
    return list(dict.fromkeys(float(ratio) + 0.0 for ratio in ratios)), []


def _budgets(budgets: Any) -> list[int]:
    if not isinstance(budgets, Sequence) or isinstance(budgets, str) or not budgets:
        raise UserError(
            f"budgets={shortened(budgets)} is not a list that holds something: give token counts "
            "from 1, such as 'budgets=[16,64]', or budgets=null to use ratios."
        )
    for budget in budgets:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise UserError(
                f"budgets has {shortened(repr(budget))}: a budget is the number of kept tokens a "
                "head, a whole number from 1."
            )
        _at_most("budgets", budget, TOKENS)
    return list(dict.fromkeys(budgets))
