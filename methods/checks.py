"""One-sentence refusals of parameter values. Knows no method."""

from __future__ import annotations

from collections.abc import Sequence


def require(condition: bool, method: str, name: str, value: object, allowed: str) -> None:
    """ValueError in one sentence unless the condition holds."""
    if not condition:
        raise ValueError(f"{method}: {name}={value!r} is not allowed; give {allowed}.")


def require_choice(method: str, name: str, value: object, choices: Sequence[str]) -> None:
    """ValueError that lists the choices unless the value is one of them."""
    require(value in choices, method, name, value, "one of " + ", ".join(choices))


def require_count(method: str, name: str, value: object, least: int) -> None:
    """ValueError unless the value is a whole number >= least."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(whole, method, name, value, f"a whole number, {least} or more")


def require_flag(method: str, name: str, value: object) -> None:
    """ValueError unless the value is True or False."""
    require(isinstance(value, bool), method, name, value, "true or false")


def require_number(method: str, name: str, value: object, above: float, most: float) -> None:
    """ValueError unless above < value <= most."""
    number = float(value) if isinstance(value, int | float) else float("nan")
    fits = not isinstance(value, bool) and above < number <= most
    limit = "" if most == float("inf") else f" and at most {most:g}"
    require(fits, method, name, value, f"a number above {above:g}{limit}")
