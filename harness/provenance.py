"""Where answers come from: versions, machine, source and settings, as plain values.

Must not decide anything: it describes what other modules did.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.grid import Cell
from harness.store import Store

PACKAGES = ("torch", "transformers", "lmms-eval", "datasets", "evictbench")
SOURCES = ("methods", "harness/engine", "harness/models.py", "harness/chat.py")
OWN = ("task", "data", "generation")  # settings that differ from task to task
SOFTWARE, EARLIER = "software", "earlier_software"


def software() -> dict[str, str]:
    """Versions of what computes answers, and a digest of this project's own sources for it."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {"source": _source()}


def note(store: Store, say: Callable[[str], object]) -> None:
    """Record the software in the store; say so when earlier answers came from other software."""
    now = software()
    before = json.loads(store.get(SOFTWARE) or "null")
    if before is not None and before != now:
        changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
        earlier = json.loads(store.get(EARLIER) or "[]")
        store.put(EARLIER, json.dumps([*(e for e in earlier if e != before), before]))
        say(
            f"note: earlier answers of this run stay, and were made with other software "
            f"({', '.join(changed)}); choose another run.name to compute them anew"
        )
    store.put(SOFTWARE, json.dumps(now))


def description(cell: Cell, context: Mapping[str, object]) -> dict[str, object]:
    """A cell and its settings as the store keeps them."""
    return {"cell": asdict(cell), "context": dict(context)}


def facts(
    weights: str,
    contexts: Mapping[str, Mapping[str, object]],
    store: Store,
    cells: Iterable[Cell],
) -> dict[str, object]:
    """What the summary lists under provenance; `contexts` are the settings by task."""
    stored, answers = store.count()
    return {
        "command": " ".join(["python -m harness", *sys.argv[1:]]),
        "settings": _shared(contexts) | {"weights": weights[:16]},
        "tasks": {name: _own(context) for name, context in contexts.items()},
        "methods": {cell.label: changes(cell) for cell in cells if cell.evicts},
        "software": json.loads(store.get(SOFTWARE) or "{}"),
        **_earlier(store),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_accelerator()}",
        "store": f"{answers} answers of {stored} cells",
    }


def _shared(contexts: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    first = next(iter(contexts.values()))
    return {name: value for name, value in first.items() if name not in OWN}


def _own(context: Mapping[str, object]) -> str:
    """What is special to a task, in one line."""
    given = context["generation"]
    said = ", ".join(f"{k}={v}" for k, v in given.items()) if isinstance(given, Mapping) else ""
    return f"{context['task']}, data {str(context['data'])[:16]}, {said}"


def changes(cell: Cell) -> str:
    """A cell's method and the parameters that are not its defaults: "restkv with alpha=0.5"."""
    import methods

    usual = methods.parameters(cell.method)
    other = ", ".join(f"{name}={value}" for name, value in cell.params if usual[name] != value)
    return f"{cell.method} with {other}" if other else cell.method


def _earlier(store: Store) -> dict[str, object]:
    """Software that some of the stored answers came from, where it was not the latest."""
    now = json.loads(store.get(SOFTWARE) or "{}")
    found = [
        ", ".join(f"{name} {value}" for name, value in one.items() if now.get(name) != value)
        for one in json.loads(store.get(EARLIER) or "[]")
        if one != now
    ]
    return {"software of earlier answers": "; ".join(found)} if found else {}


def digest(value: object) -> str:
    """16 hex digits of sha256 over a value as JSON."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _source() -> str:
    root = Path(__file__).resolve().parent.parent
    found = hashlib.sha256()
    for name in SOURCES:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]
