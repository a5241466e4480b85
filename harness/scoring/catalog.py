"""Where a task or group is defined: names found in the text of the task YAML files.

lmms-eval's own index parses all of its 1,900 files, which takes 8 s; this reads the lines that name
things. Knows the files only; must not import lmms-eval, models or the store.
"""

import difflib
import os
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError

OURS = Path(__file__).resolve().parent / "tasks"
_KEY = re.compile(
    r"""^(["']?)(task|group|tag|class|include)\1[ \t]*:(?=\s|$)[ \t]*(.*)$""", re.MULTILINE
)
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)")


@dataclass
class Entry:
    """A name: `kind` is task, class (a task written in Python), group or tag; a tag has no file."""

    kind: str
    path: Path | None = None
    tasks: list[str] = field(default_factory=list)  # of a tag


def find(name: str) -> Path | None:
    """The YAML file that defines the task or group `name`; this project's before lmms-eval's."""
    entry = _index().get(name)
    return entry.path if entry else None


def kind(name: str) -> str | None:
    """What a name stands for: "task", "class", "group" or "tag"; None where it is not known."""
    entry = _index().get(name)
    return entry.kind if entry else None


def members(name: str) -> list[str]:
    """The tasks of a group or tag, groups in groups included, each once; a task is its own.

    Raises:
        UserError: the name, or one that a group lists, is not known.
    """
    return list(dict.fromkeys(_flat(name, ())))


def settings(name: str) -> dict[str, Any]:
    """The plain fields of a task's YAML and of the templates that it includes, functions as None.

    Raises:
        UserError: the name is not known.
    """
    path = find(name)
    if path is None:
        raise unknown(name)
    return _fields(path)


def _fields(path: Path) -> dict[str, Any]:
    own = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader) or {}
    included = own.pop("include", [])
    above: dict[str, Any] = {}
    for one in reversed([included] if isinstance(included, str) else included):
        above |= _fields(path.parent / one)
    return above | own


def names_like(name: str, count: int = 5) -> list[str]:
    """Known names to propose for one that is not: those that hold it, then similar ones."""
    names = list(_index())
    holding = sorted((n for n in names if name.lower() in n.lower()), key=lambda n: (len(n), n))
    similar = difflib.get_close_matches(name, names, count)
    return list(dict.fromkeys([*holding, *similar]))[:count]


def unknown(name: str) -> UserError:
    """The error for a name that no file defines."""
    near = names_like(name)
    like = f"similar names are {', '.join(near)}" if near else "`lmms-eval tasks` lists them"
    return UserError(f"task={name} is not a task, group or tag of lmms-eval: {like}.")


def _flat(name: str, parents: tuple[str, ...]) -> list[str]:
    entry = _index().get(name)
    if entry is None:
        raise unknown(name)
    if entry.kind == "tag":
        return entry.tasks
    if entry.kind != "group" or name in parents:
        return [] if name in parents else [name]
    assert entry.path is not None
    listed = yaml.load(entry.path.read_text(encoding="utf-8"), _Loader)["task"]
    return [task for one in listed for task in _listed(one, (*parents, name))]


def _listed(one: Any, parents: tuple[str, ...]) -> list[str]:
    """An item of a group's list: a name, a task with settings, or a group written in place."""
    if isinstance(one, str):
        return _flat(one, parents)
    if isinstance(one["task"], str):
        return _flat(one["task"], parents)
    return [task for inner in one["task"] for task in _listed(inner, parents)]


class _Loader(yaml.SafeLoader):
    """Plain YAML in which the tag `!function` means nothing."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


@cache
def _index() -> dict[str, Entry]:
    """Every name; where two files claim one, ours has it, then the deeper one, as in lmms-eval."""
    index: dict[str, Entry] = {}
    for path in [path for root in (OURS, theirs()) for path in _files(root)]:
        for name, entry in _entries(path):
            known = index.setdefault(name, entry)
            if known is not entry and known.kind == entry.kind == "tag":
                known.tasks += entry.tasks
    return index


def theirs() -> Path:
    """The folder of lmms-eval's own tasks, found without importing it."""
    spec = find_spec("lmms_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _files(root: Path) -> list[Path]:
    walk = os.walk(root)
    found = [Path(at) / f for at, _, files in walk for f in files if f.endswith(".yaml")]
    return sorted(found, key=lambda path: (-len(path.parts), path))


def _entries(path: Path) -> list[tuple[str, Entry]]:
    """What a file defines: its task or group, and the tags it gives a task."""
    found = _keys(path)
    task, group = found.get("task", []), found.get("group", [])
    if isinstance(task, list):
        return [(group, Entry("group", path))] if isinstance(group, str) and task else []
    made = Entry("class" if "class" in found else "task", path)
    tags = [found.get("tag", []), group]
    names = [n for tag in tags for n in ([tag] if isinstance(tag, str) else tag)]
    return [(task, made), *((name, Entry("tag", None, [task])) for name in names)]


@cache
def _keys(path: Path) -> dict[str, str | list[str]]:
    """The keys of a file that name things, those of the templates it includes among them."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return {}
    own = {m[2]: _values(m[3], text, m.end()) for m in _KEY.finditer(text)}
    included = own.pop("include", [])
    above: dict[str, str | list[str]] = {}
    for name in reversed([included] if isinstance(included, str) else included):
        above |= _keys(path.parent / name)
    return above | own


def _values(value: str, text: str, end: int) -> str | list[str]:
    """The text behind a key, or the items of its list, on the same line or on the next ones."""
    value = value.strip()
    if value.startswith("["):
        inside = text[end - len(value) : text.find("]", end - len(value))].lstrip("[")
        return [_scalar(item.strip()) for item in inside.split(",") if item.strip()]
    if value and not value.startswith("#"):
        return _scalar(value)
    items = []
    for line in text[end:].splitlines()[1:]:
        item = _ITEM.match(line)
        if item:
            items.append(_scalar(item[1].strip()))
        elif line.strip() and not line.lstrip().startswith("#") and not line.startswith(" "):
            break
    return items


def _scalar(value: str) -> str:
    """A name without its quotes and without a comment behind it."""
    if value[:1] in ("'", '"'):
        return value[1 : value.find(value[0], 1)]
    return re.split(r"\s#", value)[0].strip()
