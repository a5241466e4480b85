"""Where answers come from: versions, machine, source and settings, as plain values.

Must not decide anything: it describes what other modules did.
"""

import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.settings.grid import DENSE, Cell, described

PACKAGES = ("torch", "transformers", "lmms-eval", "datasets", "evictbench")
SOURCES = ("methods", "harness/engine", "harness/models", "harness/sparse")
OWN = ("task", "data", "generation")  # settings that differ from task to task
HOST = "host"
MACHINE = ("device", "dtype", "machine", HOST)  # of an origin, what is no software


def software() -> dict[str, str]:
    """Versions of what computes answers, and a digest of this project's own sources for it."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {"source": _source()}


def origin(context: Mapping[str, object]) -> dict[str, str]:
    """What computes answers now, as the store keeps it with every row."""
    return {
        **software(),
        "device": _device(str(context["device"])),
        "dtype": str(context["dtype"]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        HOST: platform.node(),
    }


def description(cell: Cell, context: Mapping[str, object]) -> dict[str, object]:
    """A cell and its settings as the store keeps them."""
    return {**described(cell, context)}


def command() -> str:
    """What was typed, as a shell takes it, without the part of the run that a process answers."""
    typed = [text for text in sys.argv[1:] if not text.startswith("shard=")]
    return shlex.join(["evictbench", *typed])


def facts(
    command: str,
    weights: str,
    contexts: Mapping[str, Mapping[str, object]],
    origins: Sequence[tuple[Mapping[str, str], int]],
    cells: Iterable[Cell],
) -> dict[str, object]:
    """What the summary lists under provenance.

    Args:
        command: that made the run, see `command`.
        weights: the checkpoint's fingerprint.
        contexts: the settings by task.
        origins: what computed the answers of this run, and how many each, most first.
        cells: of the run.
    """
    main = origins[0][0] if origins else {}
    every = list(cells)
    return {
        "command": command,
        "settings": _shared(contexts) | _when(every) | {"weights": weights[:16]},
        "tasks": {name: _own(context) for name, context in contexts.items()},
        "methods": {cell.label: changes(cell) for cell in every if cell.evicts},
        "software": {name: value for name, value in main.items() if name not in MACHINE},
        "computed on": ", ".join(
            filter(None, (main.get("device"), main.get("dtype"), main.get("machine")))
        ),
        **_others(main, origins[1:]),
    }


def _when(cells: Sequence[Cell]) -> dict[str, str]:
    """When the cells are evicted, the tail of the protocol that has one, and how prompts were read
    where that is not dense.
    """
    found = {"protocol": [one.protocol for one in cells], "tail": [one.tail or "" for one in cells]}
    ways = {one.prefill: _read(one) for one in cells}
    found["prefill"] = [] if {*ways} == {DENSE} else list(ways.values())
    said = {name: ", ".join(filter(None, dict.fromkeys(each))) for name, each in found.items()}
    return {name: each for name, each in said.items() if each}


def _shared(contexts: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    first = next(iter(contexts.values()))
    return {name: value for name, value in first.items() if name not in OWN}


def _own(context: Mapping[str, object]) -> str:
    """What is special to a task, in one line."""
    given = context["generation"]
    said = ", ".join(f"{k}={v}" for k, v in given.items()) if isinstance(given, Mapping) else ""
    return f"{context['task']}, data {str(context['data'])[:16]}, {said}"


def _read(cell: Cell) -> str:
    """How a cell's prompt was read: "dense", or "flexprefill (gamma=0.9, ...)"."""
    given = dict(cell.pattern)
    name = given.pop("pattern", cell.prefill)
    return f"{name} ({', '.join(f'{k}={v}' for k, v in given.items())})" if given else str(name)


def changes(cell: Cell) -> str:
    """A cell's method and the parameters that are not its defaults: "restkv with alpha=0.5"."""
    import methods

    usual = methods.parameters(cell.method)
    changed = [(name, value) for name, value in cell.params if usual.get(name, "") != value]
    other = ", ".join(f"{name}={value}" for name, value in changed)
    return f"{cell.method} with {other}" if other else cell.method


def _others(
    main: Mapping[str, str], others: Sequence[tuple[Mapping[str, str], int]]
) -> dict[str, object]:
    """What computed the other answers, where that differs in more than the host."""
    told: dict[str, int] = {}
    for origin, count in others:
        differing = [k for k in {**main, **origin} if k != HOST and main.get(k) != origin.get(k)]
        if differing:
            said = ", ".join(f"{name} {origin.get(name, 'unknown')}" for name in sorted(differing))
            told[said] = told.get(said, 0) + count
    found = "; ".join(f"{count:,} answers: {said}" for said, count in told.items())
    return {"computed otherwise": found} if found else {}


def _device(kind: str) -> str:
    """The name of the GPU, or "cpu"."""
    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else kind


def _source() -> str:
    root = Path(__file__).resolve().parents[2]
    found = hashlib.sha256()
    for name in SOURCES:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]
