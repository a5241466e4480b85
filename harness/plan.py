"""The plan of an analysis: from the settings, and on record before the first answer.

Knows settings and the store's notes; must not know samples.
"""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.config import Config
from harness.store import Store

if TYPE_CHECKING:
    from harness.stats.plan import Plan

REGISTERED = "analysis"
FREE = ("resamples", "seed")  # change the precision of the bootstrap, not what is tested


def plan_of(config: Config) -> "Plan":
    """The plan that the settings give; their margin is in points, the plan's a fraction."""
    from harness.stats.plan import Plan  # late: it brings pandas, and bad input is found without

    given = asdict(config.analysis)
    return Plan(**given | {"margin": given["margin"] / 100, "seed": config.seed})


def register(store: Store, config: Config) -> None:
    """Put the plan on record while there is no answer; later nothing changes it."""
    if store.count()[1] == 0:
        store.put(REGISTERED, json.dumps(_asked(config), sort_keys=True))


def registration(store: Store, config: Config) -> tuple[bool, str]:
    """Whether this plan was on record before the first answer, and a sentence that says so.

    The settings compared, the parameters of the method and its control, how answers are read and
    the number of questions belong to it: whoever changes one after a look at the answers tests
    something else than was planned.
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
            "verdicts are exploratory."
        )
    return True, "The plan was put on record before the first answer was computed."


def _asked(config: Config) -> dict[str, Any]:
    plan = {name: value for name, value in asdict(config.analysis).items() if name not in FREE}
    tested = {name: config.methods.get(plan[name]) for name in ("method", "control")}
    return {
        **plan,
        "ratios": sorted(config.ratios or ()),
        "budgets": sorted(config.budgets or ()),
        "limit": config.limit,
        "tasks": sorted(config.tasks),
        "protocol": asdict(config.protocol),
        "extraction": {
            name: task.extraction or config.extraction for name, task in config.tasks.items()
        },
        "parameters": {name: dict(params) for name, params in tested.items() if params},
    }
