"""The benchmark around `methods`, one room a folder: see docs/structure.md.

`harness.evict` is loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.process import vision

if TYPE_CHECKING:
    from harness.engine.evict import evict as evict

__version__ = "0.1.0"
__all__ = ["evict"]
vision.watch()


def __getattr__(name: str) -> object:
    """Import `evict` on first use (PEP 562)."""
    if name == "evict":
        from harness.engine.evict import evict

        return evict
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
