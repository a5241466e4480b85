"""Sparse prefill: which pairs of blocks of a prompt a layer computes, and attention to them.

Torch only; it must not know models, prompts, caches or eviction methods.
"""

from __future__ import annotations

from typing import Any

from harness.sparse.a_shape import AShape
from harness.sparse.attention import attend
from harness.sparse.blocks import BLOCK, causal, finished, share
from harness.sparse.flexprefill import FlexPrefill
from harness.sparse.pattern import Pattern
from harness.sparse.vertical_slash import VerticalSlash
from harness.sparse.xattention import XAttention

__all__ = [
    "BLOCK",
    "DENSE",
    "Pattern",
    "attend",
    "build",
    "causal",
    "finished",
    "names",
    "parameters",
    "share",
    "title",
]

DENSE = "dense"
_PATTERNS: dict[str, type[Pattern]] = {
    pattern.name: pattern for pattern in (AShape, VerticalSlash, FlexPrefill, XAttention)
}


def names() -> tuple[str, ...]:
    """Names that `build` takes; dense, which computes everything, comes first."""
    return (DENSE, *_PATTERNS)


def title(name: str) -> str:
    """A pattern's name as it is written in a sentence, such as XAttention."""
    return DENSE if name == DENSE else _PATTERNS[name].title


def build(name: str, **params: object) -> Pattern | None:
    """The pattern with these parameters; None for dense.

    ValueError, one sentence, for an unknown name, parameter or value.
    """
    known = parameters(name)
    for parameter in params:
        if parameter not in known:
            takes = "it takes " + ", ".join(known) if known else "it takes none"
            raise ValueError(f"{name} has no parameter {parameter!r}; {takes}.")
    if name == DENSE:
        return None
    kind: Any = _PATTERNS[name]
    pattern: Pattern = kind(**params)
    return pattern


def parameters(name: str) -> dict[str, object]:
    """Parameters of a pattern with their defaults. ValueError for an unknown name."""
    if name not in names():
        raise ValueError(f"unknown prefill {name!r}; choose one of {', '.join(names())}.")
    return {} if name == DENSE else _PATTERNS[name]().params
