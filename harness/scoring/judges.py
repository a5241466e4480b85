"""Whether a task's score depends on a model behind an API, told from the code it can reach.

lmms-eval does not declare it: without a key such a task retries for minutes and then scores 0.
Knows functions and the environment; must not know tasks, models or the store.
"""

import dis
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from inspect import getattr_static, unwrap
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from harness.scoring import catalog

CLIENTS = (
    "lmms_eval.llm_judge", "openai", "anthropic", "google.generativeai", "dashscope", "requests",
    "httpx", "aiohttp",
)  # fmt: skip
KEYS = {
    "openai": "OPENAI_API_KEY", "async_openai": "OPENAI_API_KEY",
    "azure": "AZURE_API_KEY", "async_azure": "AZURE_API_KEY",
}  # fmt: skip


def judge_of(function: Any) -> str | None:
    """The client of a service that a function can come to call, by its module; None without one.

    A task's functions are followed into those of its own files, not into libraries.
    """
    for one in reachable(function):
        for name in _named(one):
            if any(name == client or name.startswith(f"{client}.") for client in CLIENTS):
                return name
    return None


def key_missing() -> str | None:
    """The environment variable that the judge chosen by API_TYPE needs and lacks."""
    name = KEYS.get(os.environ.get("API_TYPE", "openai").lower())
    return name if name and not os.environ.get(name) else None


def reachable(function: Any) -> tuple[FunctionType, ...]:
    """The function and those that it can call, as far as they belong to tasks."""
    start = _plain(function)
    return () if start is None else _walk(start)


@cache
def _walk(start: FunctionType) -> tuple[FunctionType, ...]:
    found: dict[CodeType, FunctionType] = {}
    todo: list[FunctionType | None] = [start]
    home = Path(start.__code__.co_filename).parent
    while todo:
        one = todo.pop()
        if one is None or one.__code__ in found or not _of_tasks(one, home):
            continue
        found[one.__code__] = one
        names = _names(one.__code__)
        todo += [_plain(inner) for value in _values(one, names) for inner in _calls(value, names)]
    return tuple(found.values())


def _of_tasks(function: FunctionType, home: Path) -> bool:
    file = Path(function.__code__.co_filename)
    return file.parent == home or any(
        file.is_relative_to(root) for root in (catalog.OURS.parent, catalog.theirs())
    )


def _plain(function: Any) -> FunctionType | None:
    """The Python function behind partial objects, methods and decorators."""
    while isinstance(function, partial):
        function = function.func
    function = unwrap(getattr(function, "__func__", function)) if callable(function) else None
    return function if isinstance(function, FunctionType) else None


def _names(code: CodeType) -> set[str]:
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)


def _values(function: FunctionType, names: set[str]) -> Iterator[Any]:
    """The globals and closed-over values that a function's code names."""
    yield from (function.__globals__[name] for name in names if name in function.__globals__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _calls(value: Any, names: set[str]) -> Iterator[Callable[..., Any]]:
    """A function itself, or the methods of a class or object that the code names."""
    if isinstance(value, FunctionType | partial):
        yield value
    elif not isinstance(value, ModuleType):
        kind = value if isinstance(value, type) else type(value)
        for name in (*names, "__init__", "__call__"):
            method = getattr_static(kind, name, None)
            method = getattr(method, "__func__", method)
            if isinstance(method, FunctionType):
                yield method


def _named(function: FunctionType) -> Iterator[str]:
    """The modules that a function imports, or whose things its code names."""
    yield from (
        str(step.argval)
        for step in dis.get_instructions(function.__code__)
        if step.opname == "IMPORT_NAME"
    )
    for value in _values(function, _names(function.__code__)):
        named = value.__name__ if isinstance(value, ModuleType) else None
        yield str(named or getattr(value, "__module__", None) or type(value).__module__)
