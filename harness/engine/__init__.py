"""Prefill once, branch into every cell, decode all cells as one batch.

Knows transformers models and eviction policies. It must not know lmms-eval, Hydra, wandb or the
store of results.
"""

from typing import TYPE_CHECKING, Any

from harness.engine.settings import Branch, BranchResult, Generation, NoRoom, NotFinite, Protocol

if TYPE_CHECKING:
    from harness.engine.session import Engine, check_device

__all__ = [
    "Branch",
    "BranchResult",
    "Engine",
    "Generation",
    "NoRoom",
    "NotFinite",
    "Protocol",
    "check_device",
]


def __getattr__(name: str) -> Any:
    """What brings torch and transformers, when it is first asked for: seconds."""
    if name not in ("Engine", "check_device"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from harness.engine import session

    return getattr(session, name)
