"""How much of the cache is kept: evicted fractions, or counts of tokens in their place."""

import math
from collections.abc import Sequence
from typing import Any

from harness.errors import UserError
from harness.settings.bounds import TOKENS, at_most, shortened

DIGITS = 6  # decimals of a ratio: tables show no more


def amounts(ratios: Any, budgets: Any) -> tuple[list[float], list[int]]:
    """Check ratios (evicted fractions) or, where given in their place, budgets (kept tokens).

    Raises:
        UserError: nothing is given, or a value is out of range.
    """
    if budgets is not None:
        return [], _budgets(budgets)
    if not isinstance(ratios, Sequence) or isinstance(ratios, str) or not ratios:
        raise UserError(
            f"ratios={shortened(ratios)} is not a list that holds something: give numbers from 0 "
            "up to, not including, 1, such as 'ratios=[0.5,0.9]'."
        )
    for ratio in ratios:
        number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
        if not number or not math.isfinite(ratio) or not 0 <= ratio < 1:
            raise UserError(
                f"ratios has {shortened(repr(ratio))}: a ratio is the evicted fraction, a number "
                "from 0 up to, not including, 1, such as 0.9."
            )
        if round(ratio, DIGITS) != ratio:
            raise UserError(
                f"ratios has {ratio!r}, which tables would show as {ratio:g}: give at most "
                f"{DIGITS} decimals."
            )
    return list(dict.fromkeys(float(ratio) + 0.0 for ratio in ratios)), []


def _budgets(budgets: Any) -> list[int]:
    if not isinstance(budgets, Sequence) or isinstance(budgets, str) or not budgets:
        raise UserError(
            f"budgets={shortened(budgets)} is not a list that holds something: give token counts "
            "from 1, such as 'budgets=[16,64]', or budgets=null to use ratios."
        )
    for budget in budgets:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise UserError(
                f"budgets has {shortened(repr(budget))}: a budget is the number of kept tokens a "
                "head, a whole number from 1."
            )
        at_most("budgets", budget, TOKENS)
    return list(dict.fromkeys(budgets))
