"""Prefill once, branch into every cell, decode all cells as one batch.

Knows transformers models and eviction policies. It must not know lmms-eval, Hydra, wandb or the
store of results.
"""

from harness.engine.session import Engine, check_device
from harness.engine.settings import Branch, BranchResult, Generation, NoRoom, NotFinite, Protocol

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
