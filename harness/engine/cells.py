"""The cells of one prompt: what each branch may keep of it.

Must not know how policies select or what a cache is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.engine.rotary import REINDEXING
from harness.engine.settings import Branch
from harness.settings.caches import Storage
from methods import Policy, budget


@dataclass(frozen=True)
class Cell:
    """A branch with the number of tokens it may keep of the L evictable ones.

    limit: how many entries a cell that holds its budget may have: that number, or the budget that
    was asked for where it is larger than L. None: any number, for ratio 0 evicts nothing.
    """

    branch: Branch
    count: int
    limit: int | None = None

    @property
    def holds(self) -> bool:
        """Whether decoding may evict from it."""
        policy = self.branch.policy
        return policy is not None and policy.decode != "grow" and self.limit is not None

    @property
    def fetches(self) -> bool:
        """Whether each pass chooses what it reads of the cell."""
        return self.branch.cache is not None and self.branch.cache.share is not None

    @property
    def slack(self) -> int:
        """How many tokens come in before a cell that holds its budget is full."""
        return 0 if self.limit is None else self.limit - self.count

    @property
    def lag(self) -> int:
        """How many tokens over its limit a cell that holds its budget may have after a step."""
        policy = self.branch.policy
        return policy.period - 1 if policy is not None and self.holds else 0


def on_top(protocol: str, tail: int) -> int:
    """How many of the `tail` come on top of a held budget: a question that is read after the
    eviction of its context, not the last tokens of a prompt.
    """
    return tail if protocol == "context" else 0


def plan(branches: Sequence[Branch], length: int) -> list[Cell]:
    """Turn ratios and budgets into token counts for a cache of `length` tokens."""
    cells = []
    for wanted in branches:
        limit = None
        if wanted.policy is not None:
            limit = budget(length, wanted.ratio or 0) if wanted.budget is None else wanted.budget
        count = length if limit is None else min(limit, length)
        cells.append(Cell(wanted, count, None if wanted.ratio == 0 else limit))
    return cells


def of_caches(cells: Sequence[Cell]) -> dict[Storage, list[int]]:
    """Which cells are stored otherwise than in full precision, by how."""
    found: dict[Storage, list[int]] = {}
    for i, cell in enumerate(cells):
        if cell.branch.cache is not None:
            found.setdefault(cell.branch.cache, []).append(i)
    return found


def reindexes(policy: Policy | None) -> bool:
    """Whether a policy gives cached keys the rotary positions of their place in the cache."""
    return policy is not None and policy.positions == "cache"


def rotary_use(policies: Sequence[Policy]) -> tuple[str, str] | None:
    """What policies need rotary positions for and what to do without, as `Rotary` takes it."""
    if any(map(reindexes, policies)):
        return REINDEXING
    names = [policy.name for policy in policies if policy.unrotates]
    if not names:
        return None
    return (
        f"{names[0]} averages the 1-D rotary positions of queries to come",
        "choose another method",
    )
