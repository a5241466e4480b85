"""From the chosen tasks to single benchmarks: groups into members, lengths into a task each.

Knows settings and the index of lmms-eval's tasks; must not load data or models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import UserError
from harness.scoring import catalog, datafiles
from harness.scoring.hub import require_dataset
from harness.settings.config import Config, TaskConfig

LENGTHS = "lengths"
IN_TOKENS = ("ruler", "needle")  # generators whose lengths are those of prompt and answer


@dataclass(frozen=True)
class Task:
    """One row of the tables: `config.lmms_task` is a single task; `group` is whose mean it is in.
    `label` is what it was chosen by.

    data: what its generator takes, one `length` in place of all, or None where nothing is made.
    """

    name: str
    label: str
    config: TaskConfig
    group: str | None = None
    data: Mapping[str, Any] | None = None


def expand(config: Config) -> list[Task]:
    """All single tasks of a run, in the order in which they were chosen.

    Raises:
        UserError: lmms-eval has no such task, a setting of the data is wrong, or two chosen groups
            share a member.
    """
    found: dict[str, Task] = {}
    for label, chosen in config.tasks.items():
        for task in _members(label, _with_extraction(chosen, config.extraction)):
            if task.name in found:
                raise UserError(
                    f"The task {task.name} is asked twice, by task={label} and by another chosen "
                    "task: leave one of the two out."
                )
            found[task.name] = task
    return list(found.values())


def check_data(tasks: Sequence[Task]) -> None:
    """Fetch or ask for all data that is not there yet, before anything heavy loads.

    Raises:
        UserError: the data of a task cannot be had.
    """
    known: set[str] = set()
    for task in tasks:
        if task.data is not None:
            _fetch(task)
            continue
        fields = catalog.settings(task.config.lmms_task) | task.config.overrides
        path, options = str(fields.get("dataset_path")), fields.get("dataset_kwargs")
        if isinstance(options, Mapping) and options.get("data_files"):
            datafiles.local(task.name, options)
        elif path not in known and "class" not in fields:
            known.add(path)
            require_dataset(task.name, path)


def _fetch(task: Task) -> None:
    from harness.scoring import generators

    assert task.data is not None
    try:
        generators.fetch(task.data)
    except UserError as error:
        said = str(error).replace("tasks.<task>.", f"tasks.{task.label}.")
        raise UserError(f"task={task.label}: {said}") from error


def _with_extraction(task: TaskConfig, usual: str) -> TaskConfig:
    return replace(task, extraction=task.extraction or usual)


def _members(label: str, task: TaskConfig) -> list[Task]:
    if catalog.find(task.lmms_task) is None:
        near = catalog.names_like(task.lmms_task)
        hint = f", such as {', '.join(near)}" if near else ""
        raise UserError(
            f"tasks.{label}.lmms_task={task.lmms_task} is neither a task nor a group of lmms-eval: "
            f"use a name that it has{hint}."
        )
    members = catalog.members(task.lmms_task)
    lengths = _lengths(label, task)
    single = members == [task.lmms_task]
    if single and lengths is None:
        return [Task(label, label, task, None, task.data)]
    found = []
    each: list[int] | list[None] = lengths or [None]
    for length in each:
        suffix = "" if length is None else f"_{length}"
        for member in members:
            data = None if task.data is None else {**task.data, "task": member, "length": length}
            name = f"{label if single else member}{suffix}"
            alone = single and len(each) == 1
            group = None if alone else label if single else f"{label}{suffix}"
            found.append(Task(name, label, replace(task, lmms_task=member), group, data))
    return found


def _check_room(task: Task, config: Config) -> None:
    """Raise UserError where a text is made longer than the model's context."""
    from harness.models import tokenizer

    assert task.data is not None
    if task.data.get("generator") not in IN_TOKENS:
        return
    model, length = config.model, int(task.data["length"])
    limit = model.max_length or tokenizer.context(
        model.pretrained, model.revision, model.trust_remote_code
    )
    if limit is not None and length > limit:
        raise UserError(
            f"task={task.name} asks prompts and answers of {length:,} tokens and "
            f"model={model.name} takes {limit:,}: choose shorter tasks.{task.label}.data.lengths, "
            "or set model.max_length if the model's own settings are too low."
        )


def _lengths(label: str, task: TaskConfig) -> list[int] | None:
    """The prompt lengths of generated data, in tokens; None where the data has none."""
    if task.data is None or LENGTHS not in task.data:
        return None
    given = task.data[LENGTHS]
    whole = isinstance(given, Sequence) and not isinstance(given, str) and given
    if not whole or not all(type(n) is int and n > 0 for n in given):
        raise UserError(
            f"tasks.{label}.data.lengths={given} is not a list of lengths: give numbers of tokens, "
            f"such as 'tasks.{label}.data.lengths=[4096,8192]'."
        )
    return list(dict.fromkeys(given))


def with_data(task: Task, config: Config) -> TaskConfig:
    """The task's settings, pointed at its data; generated first where it is made and not there.

    Raises:
        UserError: the data cannot be made, or needs a download that fails.
    """
    if task.data is None:
        return task.config
    from harness.models import tokenizer
    from harness.scoring import generators

    model = config.model
    reader, digest = tokenizer.load(model.pretrained, model.revision, model.trust_remote_code)
    name, seed = str(task.data.get("generator")), config.seed
    _check_room(task, config)
    folder = generators.prepare(name, task.data, reader, digest, seed)
    return replace(task.config, overrides={**task.config.overrides, "dataset_path": str(folder)})
