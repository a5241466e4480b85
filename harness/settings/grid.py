"""The cells of a sweep: which method at which ratio, and the key that names each one's answers.

Must not know models, tasks or tensors: what can change an answer arrives as a plain mapping.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

#: Raised by hand when a change of the code changes answers that earlier stores hold.
ANSWERS_VERSION = 3

#: Parameters that came after answers were stored, and the settings without one of which they do
#: nothing: there they are left out of keys and plans, so that those answers and plans are found.
IDLE = {
    "boundary_share": ("protect", ("boundary",)),
    "merge": ("merge", ("average", "pivot", "weighted")),
    "buffer": ("decode", ("buffer",)),
}

#: Methods whose answers changed with the code: under which settings, and how often. The number goes
#: into the keys of such cells, so that answers stored before are not taken for theirs.
CHANGED = {"trimkv": ({"budget": ("global",), "decode": ("hold", "buffer")}, 1)}

FULL = "full"
DENSE = "dense"
BLANK_IMAGE = "blank_image"


@dataclass(frozen=True)
class Variant:
    """A method with all its parameters, under the label that tables show."""

    label: str
    method: str
    params: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Prefill:
    """A way to read prompts, under the label that tables show: the name of its pattern and all its
    parameters, or nothing for dense.
    """

    label: str = DENSE
    pattern: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Cell:
    """One column of answers: a labelled method at one ratio (evicted fraction) or budget (kept
    tokens a KV head) under one protocol; `control` is "none", or "blank_image" for the full cache
    on a grey image. tail: of the protocol, null where it has none. prefill, pattern: as of Prefill.
    """

    label: str
    method: str
    params: tuple[tuple[str, object], ...] = ()
    ratio: float | None = None
    budget: int | None = None
    control: str = "none"
    protocol: str = "replay"
    tail: str | None = "last_token"
    prefill: str = DENSE
    pattern: tuple[tuple[str, object], ...] = ()

    @property
    def under(self) -> str:
        """When it is evicted and how its prompt was read: "replay", or "replay+flexprefill"."""
        return self.protocol if self.prefill == DENSE else f"{self.protocol}+{self.prefill}"

    @property
    def evicts(self) -> bool:
        """Whether its cache is smaller than the full one: a policy evicts from it, or what it keeps
        is stored in few bits.
        """
        return self.method != FULL or bool(self.params)


def expand(
    variants: Sequence[Variant],
    ratios: Sequence[float],
    budgets: Sequence[int],
    blank_image: bool = True,
    protocols: Sequence[tuple[str, str | None]] = (("replay", "last_token"),),
    prefills: Sequence[Prefill] = (Prefill(),),
) -> list[Cell]:
    """All cells of a sweep for each protocol and its tail, and each prefill: first the full cache
    and the blank-image control, then method by method. A variant that evicts nothing and stores
    all in few bits is a single cell, of ratio 0.
    """
    cells = [Cell(FULL, FULL)]
    if blank_image:
        cells.append(Cell(BLANK_IMAGE, FULL, control=BLANK_IMAGE))
    for variant in variants:
        base = (variant.label, variant.method, variant.params)
        if variant.method == FULL:
            cells += [Cell(*base, ratio=0.0)] if variant.params else []
            continue
        cells += [Cell(*base, ratio=ratio) for ratio in ratios]
        cells += [Cell(*base, budget=budget) for budget in budgets]
    return [
        replace(cell, protocol=name, tail=tail, prefill=one.label, pattern=one.pattern)
        for name, tail in protocols
        for one in prefills
        for cell in cells
    ]


def full_cells(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """Those of the full cache, one a protocol and prefill, by key."""
    return {
        key: cell for key, cell in cells.items() if not cell.evicts and cell.control != BLANK_IMAGE
    }


def described(cell: Cell, context: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """A cell and every setting that can change its answers, as JSON takes them."""
    own = asdict(cell)
    when = {name: own.pop(name) for name in ("protocol", "tail")}
    pattern = dict(own.pop("pattern"))
    if pattern:
        when["prefill"] = pattern
    else:
        del own["prefill"]  # as before there were others
    return {"cell": own, "context": {**context, **when}}


def cell_key(cell: Cell, context: Mapping[str, object]) -> str:
    """16 hex digits of sha256 over every setting that can change this cell's answers.

    Args:
        cell: its labels are left out: renaming a variant or a prefill keeps its answers.
        context: weights and data fingerprints, task, generation, dtype, device, seed.
    """
    told = described(cell, context)
    told["cell"].pop("label")
    told["cell"].pop("prefill", None)
    told["cell"]["params"] = list(in_force(dict(cell.params)).items())
    payload = {**told, "version": ANSWERS_VERSION, **_changes(cell)}
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _changes(cell: Cell) -> dict[str, int]:
    """How often the meaning of a cell's settings has changed, if it has (CHANGED)."""
    settings, number = CHANGED.get(cell.method, ({}, 0))
    params = dict(cell.params)
    changed = number and all(params.get(name) in values for name, values in settings.items())
    return {"changes": number} if changed else {}


def in_force(params: Mapping[str, object]) -> dict[str, object]:
    """A method's parameters without those that do nothing beside the others (IDLE)."""

    def acts(name: str) -> bool:
        other, values = IDLE.get(name, (name, None))
        return values is None or params.get(other) in values

    return {name: value for name, value in params.items() if acts(name)}
