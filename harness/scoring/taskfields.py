"""What `tasks.<name>.overrides` may hold: a field of a lmms-eval task with a value of its kind.

Checked before lmms-eval sees it, which takes anything and fails wherever it first uses it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Union, get_args, get_origin

from lmms_eval.api.task import TaskConfig

from harness.errors import UserError

KINDS = {dict: "a mapping", list: "a list", str: "a text", int: "a whole number", bool: "a switch"}
CODE = {"process_results"}  # lmms-eval calls it, although it declares a text as well


def check(name: str, given: Mapping[str, Any]) -> None:
    """Raise UserError for a field that no task has, or a value that its field cannot take."""
    known = {field.name: field.type for field in fields(TaskConfig)}
    for field, value in given.items():
        place = f"tasks.{name}.overrides.{field}"
        if field not in known:
            raise UserError(
                f"{place}: no task of lmms-eval has a field {field}: use those of the task's YAML."
            )
        if value is not None and not _fits(known[field], value):
            raise UserError(f"{place}={value!r} cannot be used: {_wanted(field, known[field])}.")
    _check_lists(name, given)
    if given.get("num_fewshot"):
        raise UserError(
            f"tasks.{name}.overrides.num_fewshot={given['num_fewshot']}: prompts with examples are "
            "not built here; leave it out."
        )


def _fits(kind: Any, value: object) -> bool:
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return any(
        isinstance(value, one) and (one is bool or not isinstance(value, bool))
        for one in kinds
        if isinstance(one, type)
    )


def _wanted(field: str, kind: Any) -> str:
    if kind is Callable:
        return "it is a function in the task's YAML, which settings cannot give; leave it out"
    kinds = get_args(kind) or (kind,)
    return f"give {' or '.join(KINDS[one] for one in kinds if one in KINDS)}"


def _check_lists(name: str, given: Mapping[str, Any]) -> None:
    """The members of lists; without a metric nothing is scored."""
    for field in ("process_results", "metric_list", "filter_list", "reasoning_tags"):
        if field not in given:
            continue
        value, place = given[field], f"tasks.{name}.overrides.{field}"
        if field in CODE and value is not None:
            raise UserError(f"{place}={value!r} cannot be used: {_wanted(field, Callable)}.")
        if field == "metric_list" and not _mappings(value, "metric"):
            raise UserError(f"{place}={value!r} names no metric: give a list of {{metric: name}}.")
        if field == "filter_list" and value is not None and not _mappings(value, "filter"):
            raise UserError(
                f"{place}={value!r} cannot be used: give a list of {{name: x, filter: [...]}}."
            )
        if field == "reasoning_tags" and not isinstance(value, list | None):
            raise UserError(f"{place}={value!r} cannot be used: give a list of pairs, or null.")


def _mappings(value: object, key: str) -> bool:
    """Whether it is a list of mappings that have the key."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and key in one for one in value)
    )
