"""One-sentence refusals of parameter values. Knows no method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TOKENS = 2**31 - 1  # more than any prompt has
WINDOW = 65_536  # tokens that a window or a pool can be wide
BUFFER = 128  # new tokens, as R-KV and TRIM-KV gather them


def require(condition: bool, method: str, name: str, value: object, allowed: str) -> None:
    """ValueError in one sentence unless the condition holds."""
    if not condition:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:50]}..."
        raise ValueError(f"{method}: {name}={shown} is not allowed; give {allowed}.")


def require_choice(method: str, name: str, value: object, choices: Sequence[str]) -> None:
    """ValueError that lists the choices unless the value is one of them."""
    require(value in choices, method, name, value, "one of " + ", ".join(choices))


def require_count(method: str, name: str, value: object, least: int, most: int = TOKENS) -> None:
    """ValueError unless the value is a whole number from least to most."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = whole and least <= value <= most  # type: ignore[operator]
    limit = f", {least} or more" if most == TOKENS else f" from {least} to {most:,}"
    require(fits, method, name, value, f"a whole number{limit}")


def require_flag(method: str, name: str, value: object) -> None:
    """ValueError unless the value is True or False."""
    require(isinstance(value, bool), method, name, value, "true or false")


def require_number(method: str, name: str, value: object, least: float, most: float) -> None:
    """ValueError unless the value is a number from least to most."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    require(fits, method, name, value, f"a number from {least:g} to at most {most:g}")


def require_decode(policy: Any) -> None:
    """ValueError unless the policy's decode is hold, grow or buffer, with a buffer that acts."""
    require_choice(policy.name, "decode", policy.decode, ("hold", "grow", "buffer"))
    require_count(policy.name, "buffer", policy.buffer, 1)
    allowed = "2 or more, as decode=hold is what evicts after every token"
    require(policy.buffer > 1, policy.name, "buffer", policy.buffer, allowed)
    allowed = f"decode=buffer with it, as decode={policy.decode} gathers no tokens"
    acts = policy.decode == "buffer" or policy.buffer == BUFFER
    require(acts, policy.name, "buffer", policy.buffer, allowed)


def require_positions(policy: Any) -> None:
    """ValueError unless the policy's positions are original or cache."""
    require_choice(policy.name, "positions", policy.positions, ("original", "cache"))
