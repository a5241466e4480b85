"""The plan of an analysis: from the settings, and on record before the first answer.

Knows settings and the store's notes; must not know samples.
"""

import json
from dataclasses import asdict
from typing import Any

from harness.config import Config
from harness.stats.plan import Plan
from harness.store import Store

REGISTERED = "analysis"
FREE = ("resamples", "seed")  # change the precision of the bootstrap, not what is tested


def plan_of(config: Config) -> Plan:
    """The plan that the settings give; their margin is in points, the plan's a fraction."""
    given = asdict(config.analysis)
    return Plan(**given | {"margin": given["margin"] / 100, "seed": config.seed})


def register(store: Store, config: Config) -> None:
    """Put the plan on record, unless one is there or answers came before it."""
    if store.get(REGISTERED) is None and store.count()[1] == 0:
        store.put(REGISTERED, json.dumps(_asked(config), sort_keys=True))


def registration(store: Store, config: Config) -> tuple[bool, str]:
    """Whether this plan was on record before the first answer, and a sentence that says so.

    The settings compared and the number of questions belong to it: whoever adds some after a look
    at the answers tests more than was planned.
    """
    found = store.get(REGISTERED)
    if found is None:
        return False, (
            "No plan was on record when the first answers of this run were computed, so its "
            "verdicts are exploratory."
        )
    before, now = json.loads(found), _asked(config)
    changed = [
        f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]
    ]
    if changed:
        return False, (
            f"The plan was changed after it was put on record ({', '.join(changed)}), so the "
            "verdicts are exploratory; a new run.name begins anew."
        )
    return True, "The plan was put on record before the first answer was computed."


def _asked(config: Config) -> dict[str, Any]:
    plan = {name: value for name, value in asdict(config.analysis).items() if name not in FREE}
    settings = {"ratios": config.ratios, "budgets": config.budgets, "limit": config.limit}
    return {**plan, **settings, "tasks": sorted(config.tasks)}
