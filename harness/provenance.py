"""Where answers come from: versions, machine, source and settings, as plain values.

Must not decide anything: it describes what other modules did.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.grid import Cell
from harness.store import Store

PACKAGES = ("torch", "transformers", "lmms-eval", "datasets", "evictbench")
SOURCES = ("methods", "harness/engine", "harness/models.py")
SOFTWARE = "software"


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
        say(
            f"note: earlier answers of this run stay, and were made with other software "
            f"({', '.join(changed)}); choose another run.name to compute them anew"
        )
    store.put(SOFTWARE, json.dumps(now))


def description(cell: Cell, context: Mapping[str, object]) -> dict[str, object]:
    """A cell and its settings as the store keeps them."""
    return {"cell": asdict(cell), "context": dict(context)}


def facts(weights: str, context: Mapping[str, object], store: Store) -> dict[str, object]:
    """What the summary lists under provenance."""
    cells, answers = store.count()
    return {
        "command": " ".join(["python -m harness", *sys.argv[1:]]),
        "settings": {**context, "weights": weights[:16], "data": str(context["data"])[:16]},
        "software": json.loads(store.get(SOFTWARE) or "{}"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_accelerator()}",
        "store": f"{answers} answers of {cells} cells",
    }


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
