"""The score of one answer, between 0 and 1, for any task of lmms-eval, with no code per task.

Tasks give back a number, a mapping that holds one, or only what their aggregation needs. The score
comes from the first metric of the task's metric_list that gives one, in the order of that list,
metrics that are better when lower left out:

1. it gives a number, or a mapping that holds one under one of SCORES, or else the metric's own
   aggregation makes one of this single answer;
2. where the task gives its own right answer more than 1 (percent, points), or where the aggregation
   adds up, that number is divided by what the right answer gets.

Knows lmms-eval's task objects; must not know models, methods or the store.
"""

import io
import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from copy import deepcopy
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.errors import UserError
from harness.scoring import catalog
from harness.scoring.judges import judge_of, key_missing, reachable

SCORES = (
    "score", "correct", "is_correct", "hit", "acc", "accuracy", "exact_match", "match", "em",
)  # fmt: skip
ANSWERS = (
    "parsed_pred", "parsed_answer", "parsed", "extracted_answer", "pred_answer", "prediction",
    "pred",
)  # fmt: skip
Document = Mapping[str, Any]
Metrics = Mapping[str, Any]


def check(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse, before any model is loaded, a task whose answers cannot be scored here.

    Args:
        name: the task, for the sentence.
        settings: its YAML as lmms-eval reads it, functions included.

    Raises:
        UserError: a judge model grades it and its key is missing, or its answers are secret.
    """
    metrics = [str(metric["metric"]) for metric in settings.get("metric_list") or []]
    if metrics and all("submission" in metric for metric in metrics):
        raise UserError(
            f"task={name} keeps its answers secret and only writes a file to hand in: choose the "
            f"split that has answers{_open_split(name)}."
        )
    judge, key = judge_of(settings.get("process_results")), key_missing()
    if judge and key:
        raise UserError(
            f"task={name} is graded by a judge model over an API ({judge}) and {key} is not set: "
            "set it (API_TYPE names another service), or choose a task that is scored without a "
            "judge, such as docvqa_val."
        )


def sample_score(task: Any, document: Document, metrics: Metrics) -> tuple[float, str | None]:
    """The score of one answer and, where the task tells it, the answer as the task read it.

    Args:
        task: lmms-eval's task object.
        document: the row that was answered.
        metrics: what the task's process_results made of the answer.

    Raises:
        UserError: no metric gives a score between 0 and 1.
    """
    for name in _ranked(task):
        if name in metrics:
            score = _score(task, document, name, metrics[name])
            if score is not None:
                return score, _answer(metrics[name])
    given = ", ".join(metrics) or "nothing"
    raise UserError(
        f"task={task.task_name} gives {given} for an answer, and no score between 0 and 1 can be "
        "read from it: choose another task, or add a scorer for this one."
    )


def metric_of(task: Any, results: Sequence[Metrics]) -> str | None:
    """The metric whose aggregation stands for the task: the first that every answer has.

    Tasks may give each kind of row a metric of its own (MMStar), of which none is the whole.
    """
    names = (name for name in _ranked(task) if all(name in metrics for metrics in results))
    return next(names, None) if results else None


def aggregate(task: Any, results: Sequence[Metrics], output: Path) -> float | None:
    """lmms-eval's own score of these answers, the same however often it is asked for.

    Args:
        task: lmms-eval's task object.
        results: what process_results made of each answer.
        output: folder for the files that some aggregations write.

    Returns:
        Its number in its own unit; None where it has none for the whole.
    """
    name = metric_of(task, results)
    if name is None:
        return None
    function = task.aggregation()[name]
    with _unchanged(function):
        return _number(_call(function, [metrics[name] for metrics in results], output))


def _ranked(task: Any) -> list[str]:
    better = task.higher_is_better()
    return [name for name in task.aggregation() if better.get(name, True)]


def _score(task: Any, document: Document, name: str, value: Any) -> float | None:
    found, adds = _held(value), False
    if found is None:
        found, adds = _alone(task.aggregation()[name], value)
    if not found or found < 0:
        return found if found == 0 else None
    full = _full_marks(task, document, name)
    if full is not None and (full > 1 or adds):
        return found / full if found <= full else None
    return found if found <= 1 and not adds else None


def _full_marks(task: Any, document: Document, name: str) -> float | None:
    """What the task gives its own right answer; None where it cannot be asked."""
    if judge_of(task.config.process_results):
        return None
    with suppress(Exception):
        target = task.doc_to_target(document)
        text = target[0] if isinstance(target, list | tuple) else target
        value = task.process_results(document, [str(text)])[name]
        direct = _held(value)
        return _alone(task.aggregation()[name], value)[0] if direct is None else direct
    return None


def _alone(function: Callable[..., Any], value: Any) -> tuple[float | None, bool]:
    """An aggregation of one item, and whether it adds items up instead of averaging them.

    None where it fails, gives no number, or could ask a judge.
    """
    if judge_of(function):
        return None, False
    with suppress(Exception), TemporaryDirectory() as folder, _unchanged(function):
        one = _number(_call(function, [deepcopy(value)], Path(folder)))
        with _unchanged(function):
            two = _number(_call(function, [deepcopy(value), deepcopy(value)], Path(folder)))
        adds = bool(one) and two is not None and math.isclose(two, 2 * (one or 0.0))
        return one, adds
    return None, False


def _call(function: Callable[..., Any], items: list[Any], output: Path) -> Any:
    arguments = Namespace(output_path=str(output), process_with_media=False, reasoning_tags=None)
    named = {"args": arguments} if "args" in _parameters(function) else {}
    with redirect_stdout(io.StringIO()):
        return function(items, **named)


def _parameters(function: Callable[..., Any]) -> Iterable[str]:
    try:
        return signature(function).parameters
    except ValueError:  # a builtin without a signature
        return ()


@contextmanager
def _unchanged(function: Callable[..., Any]) -> Iterator[None]:
    """Put back the module-level containers that an aggregation counts in (OCRBench adds up)."""
    kept = []
    for one in reachable(function):
        names = set(one.__code__.co_names) & set(one.__globals__)
        held = [one.__globals__[name] for name in names]
        kept += [(value, deepcopy(value)) for value in held if isinstance(value, dict | list | set)]
    try:
        yield
    finally:
        for value, before in kept:
            value.clear()
            value.extend(before) if isinstance(value, list) else value.update(before)


def _held(value: Any) -> float | None:
    """A number, or the one that a mapping holds under a name for scores."""
    if isinstance(value, Mapping):
        found = (_number(value.get(name)) for name in SCORES)
        return next((number for number in found if number is not None), None)
    return _number(value)


def _number(value: Any) -> float | None:
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        return None
    return float(value)


def _answer(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return None
    found = (value.get(name) for name in ANSWERS)
    return next((text for text in found if isinstance(text, str)), None)


def _open_split(name: str) -> str:
    other = (name.replace("test", split) for split in ("val", "dev"))
    known = [near for near in other if near != name and catalog.find(near)]
    return f", such as {known[0]}" if known else ""
