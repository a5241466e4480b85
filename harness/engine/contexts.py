"""What can be said of a prompt and its cells before anything is read.

Must not know how a context is repeated, or who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.engine.inputs import check_boundary, position_ids
from harness.engine.settings import Branch

if TYPE_CHECKING:
    from harness.engine.session import Engine
    from harness.models.prompts import Prompt


def check(engine: Engine, prompt: Prompt, branches: Sequence[Branch]) -> None:
    """ValueError, one sentence, where the protocol does not fit the prompt, or the model has no
    positions to repeat its context and a branch needs that.
    """
    kinds, boundary = prompt.modality, engine.boundary(prompt)
    check_boundary(kinds, boundary)
    policies = [branch.policy for branch in branches if branch.policy is not None]
    requests = [(policy, [1]) for policy in policies if policy.recites is not None]
    if requests:
        positions = position_ids(engine.model, prompt.inputs, kinds)
        engine.prefills.check(prompt, positions, kinds, boundary, requests)
