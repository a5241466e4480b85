"""Imports go down the list of docs/structure.md; the graph of imports is grimp's."""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "structure.md").read_text(), re.MULTILINE)
LOOSE = {"__init__.py", "__main__.py", "errors.py"}


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("harness", "methods", include_external_packages=True, cache_dir=None)


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def room_of(module: str) -> str | None:
    """The innermost room; the top of a package belongs to none."""
    return max((room for room in ROOMS if inside(module, room)), key=len, default=None)


def ours(imports: grimp.ImportGraph) -> list[str]:
    return sorted(m for m in imports.modules if m.partition(".")[0] in ("harness", "methods"))


def arrows(imports: grimp.ImportGraph) -> list[tuple[str, str]]:
    mine = set(ours(imports))
    found = [(a, b) for a in mine for b in imports.find_modules_directly_imported_by(a)]
    return sorted((a, b) for a, b in found if b in mine)


def upward(arrows: list[tuple[str, str]], order: list[str]) -> list[tuple[str, str]]:
    """Those that lead from a lower room to a higher one."""
    places = {room: place for place, room in enumerate(order)}
    between = [(a, b, room_of(a), room_of(b)) for a, b in arrows]
    return [(a, b) for a, b, x, y in between if x and y and places[x] > places[y]]


def circle(arrows: list[tuple[str, str]]) -> list[str]:
    """Modules that import each other, or none."""
    below: dict[str, set[str]] = {}
    for a, b in arrows:
        below.setdefault(a, set()).add(b)
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_is_in_a_room_of_the_list(imports: grimp.ImportGraph) -> None:
    assert [m for m in ours(imports) if room_of(m) is None] == ["harness"]
    assert len(ROOMS) == len(set(ROOMS)) > 10


def test_no_import_leads_up(imports: grimp.ImportGraph) -> None:
    assert upward(arrows(imports), ROOMS) == []


def test_no_two_modules_import_each_other(imports: grimp.ImportGraph) -> None:
    assert circle(arrows(imports)) == []


def test_both_rules_are_seen_to_be_broken(imports: grimp.ImportGraph) -> None:
    """The list upside down breaks nearly every arrow; an arrow turned round is a circle."""
    found = arrows(imports)
    crossing = [pair for pair in found if len({room_of(m) for m in pair} - {None}) == 2]
    assert len(crossing) > 200
    assert len(upward(found, ROOMS[::-1])) == len(crossing)
    assert set(circle([*found, ("harness.stats.frame", "harness.run.cli")])) >= {
        "harness.stats.frame",
        "harness.run.cli",
    }


FORBIDDEN = {
    "methods": ("harness", "lmms_eval", "hydra", "wandb", "transformers"),
    "harness.sparse": ("transformers", "lmms_eval", "hydra", "omegaconf", "wandb"),
    "harness.engine": ("lmms_eval", "hydra", "omegaconf", "wandb"),
    "harness.stats": ("torch", "transformers", "lmms_eval", "hydra", "omegaconf", "wandb"),
    "harness.report": ("torch", "transformers", "lmms_eval", "hydra", "wandb"),
    "harness.tracking": ("torch", "transformers", "lmms_eval", "hydra"),
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_never_imports_what_it_must_not_know(imports: grimp.ImportGraph, room: str) -> None:
    mine = [m for m in ours(imports) if inside(m, room)]
    assert mine
    found = {m: imports.find_modules_directly_imported_by(m) for m in mine}
    wrong = [(m, x) for m in mine for x in found[m] if x.split(".")[0] in FORBIDDEN[room]]
    assert wrong == []


def test_the_house_has_no_loose_file() -> None:
    assert {path.name for path in (ROOT / "harness").glob("*.py")} == LOOSE
