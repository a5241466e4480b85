"""The options that both needle tasks share: depths in percent, rows a depth."""

from collections.abc import Mapping
from typing import Any

from harness.errors import UserError

DEPTHS = tuple(range(0, 101, 10))


def depths(options: Mapping[str, Any]) -> list[float]:
    """The depths in percent: 0 is the beginning of the context, 100 its end.

    Raises:
        UserError: they are not a list of numbers from 0 to 100.
    """
    given = options["depths"]
    valid = isinstance(given, list | tuple) and all(
        isinstance(d, (int, float)) and not isinstance(d, bool) and 0 <= d <= 100 for d in given
    )
    if not valid or not given:
        raise UserError(
            f"data.depths={given} is not a grid: list the depths in percent, from 0 (beginning) to "
            "100 (end), such as [0,50,100]."
        )
    return [float(depth) for depth in given]


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise UserError for a value that an option does not take."""
    if value not in allowed:
        raise UserError(f"data.{name}={value} is not known: use one of {', '.join(allowed)}.")
