"""How the entries of a cell are stored beside which are kept: `cache` and what belongs to it.

Knows no methods, models or tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.errors import UserError

FULL_PRECISION, QUANTIZED = "full_precision", "quantized"
CACHES = (FULL_PRECISION, QUANTIZED)
BITS = (8, 4, 2)
HOLDS = (
    "cache=quantized packs groups of entries, none of which can go by itself while an answer is "
    "written; give decode=grow."
)
MERGES = (
    "cache=quantized packs entries as the prompt made them, and merge changes what stays; give "
    "merge=none."
)
MOST = 65_536  # entries of a group, and those that stay as they are


@dataclass(frozen=True)
class Quantized:
    """Keys by channel and values by token in few bits, as KIVI stores them (arXiv 2402.02750).

    bits: of each number. group: so many numbers share a step and a zero: entries of one channel of
    the keys, channels of one entry of the values. residual: so many of the newest entries of each
    KV head stay in full precision. ValueError, one sentence, for values out of range.
    """

    bits: int = 4
    group: int = 32
    residual: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be stored."""
        if type(self.bits) is not int or self.bits not in BITS:
            raise ValueError(f"cache_bits={self.bits!r} is not allowed; give 8, 4 or 2.")
        for name, value, least in (("group", self.group, 1), ("residual", self.residual, 0)):
            if type(value) is not int or not least <= value <= MOST:
                raise ValueError(
                    f"cache_{name}={value!r} is not allowed; give a whole number from {least} to "
                    f"{MOST:,}."
                )

    @property
    def params(self) -> dict[str, object]:
        """As settings name it."""
        named = {f"cache_{name}": value for name, value in asdict(self).items()}
        return {"cache": QUANTIZED, **named}


NAMES = tuple(Quantized().params)


def spread(chosen: Mapping[str, Any], wide: Mapping[str, object]) -> dict[str, Any]:
    """The labels with their parameters, and with what is given for all of them where they set
    nothing of their own; the full cache stays as it is. UserError where that reaches none.
    """
    if not wide:
        return dict(chosen)
    usual = {**Quantized().params, "cache": FULL_PRECISION}
    found, reached = {}, False
    for label, node in chosen.items():
        found[label] = node
        if not isinstance(node, Mapping) or label == "full":
            continue
        own = {name: value for name, value in node.items() if usual.get(name, "") != value}
        merged = {**node, **wide, **own}
        if merged.get("cache") == QUANTIZED:
            found[label], reached = merged, True
    if not reached and wide != {"cache": FULL_PRECISION}:
        _refuse(wide)
    return found


def _refuse(wide: Mapping[str, object]) -> None:
    """Of values that no chosen method takes."""
    given = ", ".join(f"{name}={value}" for name, value in wide.items())
    raise UserError(
        f"{given} applies to none of the chosen methods, which keep all they have in full "
        "precision: give cache=quantized, and choose a method other than full."
    )


def parted(params: Mapping[str, Any]) -> tuple[dict[str, Any], Quantized | None]:
    """The parameters of a method without those of its cache, and the cache; None: full precision.

    ValueError, one sentence, for values out of range, and for bits of a cache in full precision.
    """
    own = {name: value for name, value in params.items() if name not in NAMES}
    given = {name: value for name, value in params.items() if name in NAMES}
    cache = given.pop("cache", FULL_PRECISION)
    if cache not in CACHES:
        raise ValueError(f"cache={cache!r} is not allowed; give one of {', '.join(CACHES)}.")
    if cache == QUANTIZED:
        return own, Quantized(**{name.removeprefix("cache_"): v for name, v in given.items()})
    for name, value in given.items():
        raise ValueError(f"{name}={value!r} is of a quantized cache; give cache=quantized as well.")
    return own, None
