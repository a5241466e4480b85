"""The question of a run, from its plan and from what was asked of which model.

Must not know samples or how a page is laid out.
"""

from collections.abc import Mapping

import pandas as pd

from harness.report import tables
from harness.stats.plan import Plan

USUAL = "Does {method} keep {score} when more than {above} of {model}'s KV cache is evicted?"
MANY = 3  # tasks that are still named one by one


def question(plan: Plan, cells: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """One sentence: that of the plan, else that of its own contrast, else whether the method keeps
    the score.

    Args:
        plan: what was planned.
        cells: `stats.summarise`, of one model or several.
        titles: label to a method's name as it is written.
    """
    template = plan.question or (plan.own.asks if plan.own else "") or USUAL
    several = cells["model"].nunique() > 1
    words = {
        "method": titles.get(plan.method, plan.method),
        "tasks": tasks(cells),
        "score": score(cells),
        "model": "each model" if several else tables.short(cells["model"].iloc[0]),
        "above": "half" if plan.above == 0.5 else f"{max(0, 100 * plan.above):g} %",
    }
    for name, value in words.items():
        template = template.replace(f"{{{name}}}", value)
    return template


def tasks(cells: pd.DataFrame) -> str:
    """The tasks by name, a group in place of its members; how many, where they are many."""
    owner = cells["task"]
    if "group" in cells:
        owner = cells["group"].fillna(cells["task"])
    names = list(dict.fromkeys(map(str, owner)))
    return tables.listed(names) if len(names) <= MANY else f"{len(names)} tasks"


def score(cells: pd.DataFrame) -> str:
    """What is kept or lost, such as "mmbench_mini accuracy" or "the score on ruler_mini"."""
    accuracy = cells["metric"].eq("accuracy").all()
    return f"{tasks(cells)} accuracy" if accuracy else f"the score on {tasks(cells)}"
