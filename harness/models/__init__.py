"""The model and its prompts: checkpoints, tokenizers, chats. Knows neither eviction nor tasks."""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, which brings torch and transformers, when it is asked for."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from harness.models.loading import load

    return load
