"""How the entries of a cell are stored beside which are kept: `cache` and what belongs to it.

Knows no methods, models or tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.errors import UserError

FULL_PRECISION, QUANTIZED = "full_precision", "quantized"
PQ_KEYS, HOST_VALUES = "pq_keys", "host_values"
BITS = (8, 4, 2)
CODE_BITS = 8  # of a product-quantised key's codes, at most
STEP = 16  # entries that leave full precision together, where nothing else says
MOST = 65_536  # entries of a group, and those that stay as they are


class Storage:
    """How the older entries of each KV head are stored; the newest `residual` stay as they are."""

    kind: ClassVar[str]
    residual: int

    @property
    def step(self) -> int:
        """So many entries are stored together, and leave full precision together."""
        return STEP

    @property
    def share(self) -> float | None:
        """The share of attention whose values are fetched from the host; None: all stay here."""
        return None

    @property
    def params(self) -> dict[str, object]:
        """As settings name it."""
        named = {f"cache_{name}": value for name, value in vars(self).items()}
        return {"cache": self.kind, **named}

    def _whole(self, name: str, least: int, most: int = MOST) -> None:
        value = getattr(self, name)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(
                f"cache_{name}={value!r} is not allowed; give a whole number from {least} to "
                f"{most:,}."
            )


def _mass(value: object) -> float:
    """A share of attention, or ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    raise ValueError(
        f"cache_mass={value!r} is not a share of attention; give a number above 0, up to 1."
    )


@dataclass(frozen=True)
class Quantized(Storage):
    """Keys by channel and values by token in few bits, as KIVI stores them (arXiv 2402.02750).

    bits: of each number. group: so many numbers share a step and a zero: entries of one channel of
    the keys, channels of one entry of the values. residual: so many of the newest entries of each
    KV head stay in full precision. ValueError, one sentence, for values out of range.
    """

    kind = QUANTIZED
    bits: int = 4
    group: int = 32
    residual: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be stored."""
        if type(self.bits) is not int or self.bits not in BITS:
            raise ValueError(f"cache_bits={self.bits!r} is not allowed; give 8, 4 or 2.")
        self._whole("group", 1)
        self._whole("residual", 0)

    @property
    def step(self) -> int:
        """A group of keys is stored together."""
        return self.group


@dataclass(frozen=True)
class PQKeys(Storage):
    """Product-quantised keys, as PQCache codes them (arXiv 2407.12820); values as they are.

    parts: so many pieces a key is cut into; bits: of the code of a piece, which names one of up to
    2**bits centroids of its KV head. residual: as of Storage. mass: values are on the host, and so
    much of attention is fetched, see HostValues; None: they stay on the device. ValueError, one
    sentence, for values out of range.
    """

    kind = PQ_KEYS
    bits: int = 6
    parts: int = 16
    residual: int = 32
    mass: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be stored."""
        self._whole("bits", 1, CODE_BITS)
        self._whole("parts", 1)
        self._whole("residual", 0)
        if self.mass is not None:
            object.__setattr__(self, "mass", _mass(self.mass))

    @property
    def share(self) -> float | None:
        """As `mass` says."""
        return self.mass


@dataclass(frozen=True)
class HostValues(Storage):
    """Values on the host, of which those are fetched that attention needs.

    mass: in every pass and layer, the fewest entries of all KV heads whose attention, with that of
    the entries on the device, reaches this share of it. residual: as of Storage. ValueError, one
    sentence, for values out of range.
    """

    kind = HOST_VALUES
    mass: float = 0.95
    residual: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be stored."""
        object.__setattr__(self, "mass", _mass(self.mass))
        self._whole("residual", 0)

    @property
    def share(self) -> float | None:
        """As `mass` says."""
        return self.mass


KINDS: dict[str, type[Storage]] = {one.kind: one for one in (Quantized, PQKeys, HostValues)}
CACHES = (FULL_PRECISION, *KINDS)
#: Every setting that some kind has, `cache` first.
NAMES = tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind().params))


def spread(chosen: Mapping[str, Any], wide: Mapping[str, object]) -> dict[str, Any]:
    """The labels with their parameters, and with what is given for all of them where they set
    nothing of their own; null sets nothing, and the full cache stays as it is.

    UserError for what reaches no label.
    """
    found: dict[str, Any] = {}
    reached: set[str] = set()
    stored = False
    for label, node in chosen.items():
        found[label] = node
        if not isinstance(node, Mapping) or label == "full":
            continue
        own = {name: v for name, v in node.items() if name not in NAMES or v is not None}
        kind = own.get("cache", wide.get("cache", FULL_PRECISION))
        found[label] = own
        if kind == FULL_PRECISION:
            continue
        stored = True
        known = KINDS[kind]().params if kind in KINDS else {"cache": kind}
        taken = {name: v for name, v in wide.items() if name in known and name not in own}
        found[label] = {**own, **taken}
        reached |= {name for name, v in wide.items() if found[label].get(name) == v}
    missed = {name: value for name, value in wide.items() if name not in reached}
    if missed and (stored or wide != {"cache": FULL_PRECISION}):
        _refuse(missed, stored)
    return found


def _refuse(missed: Mapping[str, object], stored: bool) -> None:
    """Of values that no chosen method takes; stored: some method has a cache of its own."""
    given = ", ".join(f"{name}={value}" for name, value in missed.items())
    having = [name for name, kind in KINDS.items() if missed.keys() <= kind().params.keys()]
    if "cache" in missed:
        why = "which are the full cache, or say themselves how they store entries: "
        what = "choose a method other than full, or leave it out."
    elif stored:
        why = "whose caches have no such setting, or set their own: "
        what = "leave it out, or choose another cache."
    else:
        why = "which keep all they have in full precision: "
        what = f"give cache={' or '.join(having)} as well, or leave it out."
    raise UserError(f"{given} applies to none of the chosen methods, {why}{what}")


def parted(params: Mapping[str, Any]) -> tuple[dict[str, Any], Storage | None]:
    """The parameters of a method without those of its cache, and the cache; None: full precision.

    ValueError, one sentence, for values out of range, and for settings that its cache lacks.
    """
    own = {name: value for name, value in params.items() if name not in NAMES}
    given = {name: v for name, v in params.items() if name in NAMES and v is not None}
    cache = given.pop("cache", FULL_PRECISION)
    if cache not in CACHES:
        raise ValueError(f"cache={cache!r} is not allowed; give one of {', '.join(CACHES)}.")
    kind = KINDS.get(cache)
    known = kind().params if kind else {}
    for name, value in given.items():
        if name not in known:
            having = [each for each, one in KINDS.items() if name in one().params]
            raise ValueError(
                f"{name}={value!r} does nothing with cache={cache}; give cache="
                f"{' or '.join(having)}, or leave it out."
            )
    if kind is None:
        return own, None
    return own, kind(**{name.removeprefix("cache_"): value for name, value in given.items()})


def uncut(dim: int, parts: int) -> str | None:
    """Why keys of `dim` numbers cannot be cut into so many parts, one sentence; None: they can."""
    if dim % parts == 0:
        return None
    able = [n for n in range(1, dim + 1) if dim % n == 0]
    return (
        f"cache_parts={parts} does not cut keys of {dim} numbers into equal parts; give one of "
        f"{', '.join(map(str, able))}."
    )


def refused(params: Mapping[str, object], cache: Storage | None) -> str | None:
    """Why a method with these parameters cannot store its entries so, one sentence; None: it can.

    Parameters that are not given are those of a method without them.
    """
    if cache is None:
        return None
    if params.get("decode", "grow") != "grow":
        return (
            f"cache={cache.kind} stores groups of entries, none of which can go by itself while an "
            "answer is written; give decode=grow."
        )
    if params.get("merge", "none") != "none":
        return (
            f"cache={cache.kind} stores entries as the prompt made them, and merge changes what "
            "stays; give merge=none."
        )
    if cache.share is not None and params.get("positions", "original") != "original":
        return (
            "cache_mass reads some of the entries, and positions=cache counts all of them; give "
            "positions=original."
        )
    return None
