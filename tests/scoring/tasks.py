"""Builds this project's lmms-eval tasks from their YAML, on local data, for the tests of tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import harness.scoring
from harness.scoring import datafiles

ROOT = Path(harness.scoring.__file__).parents[2]
FOLDER = Path(harness.scoring.__file__).parent / "tasks"


@contextmanager
def own_data(root: Path) -> Iterator[Path]:
    """Let tasks read their hub files from below `root`, and keep what they convert there too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVICTBENCH_DATA", str(root))
        patch.setattr(datafiles, "_converted", lambda: root / "converted")
        yield root


@cache
def manager() -> Any:
    """lmms-eval's index of this project's tasks alone."""
    from lmms_eval.tasks import TaskManager

    return TaskManager(include_path=str(FOLDER), include_defaults=False)


def settings(name: str) -> dict[str, Any]:
    """A task's YAML as lmms-eval reads it."""
    from lmms_eval import utils

    found = manager().task_index[name]
    assert found["type"] == "task", found
    return utils.load_yaml_config(found["yaml_path"], mode="full")


def members(group: str) -> list[str]:
    """The tasks of a group."""
    from lmms_eval import utils

    found = manager().task_index[group]
    assert found["type"] == "group", found
    return utils.load_yaml_config(found["yaml_path"], mode="full")["task"]


def build(name: str) -> Any:
    """The task on data under EVICTBENCH_DATA."""
    from lmms_eval.api.task import ConfigurableMessagesTask

    read = settings(name)
    read["dataset_kwargs"] = datafiles.local(name, read["dataset_kwargs"])
    return ConfigurableMessagesTask(config=read, model_name="evictbench")


def score(task: Any, document: dict[str, Any], text: str) -> dict[str, float]:
    """What the task makes of an answer, its filters first, as lmms-eval's evaluator does."""
    if not getattr(task, "_instances", None):
        task.build_all_requests()
    for instance in task.instances:
        instance.resps, instance.filtered_resps = [text], {}
    task.apply_filters()
    (filtered,) = {str(v) for v in task.instances[0].filtered_resps.values()}
    return task.process_results(document, [filtered])
