"""Studies of samples with a known truth, as answers are made of them."""

from functools import cache

import pandas as pd

from harness.report import build
from harness.report.study import Study
from tests.answer.conftest import study_samples
from tests.answer.test_verdicts import FACTORS

WHOLE = {
    ("random", 0.7): 120, ("random", 0.9): 200,
    ("restkv", 0.7): 0, ("restkv", 0.9): 60,
    ("restkv_neither", 0.7): 0, ("restkv_neither", 0.9): 0,
}  # fmt: skip


def study(samples: pd.DataFrame, **manifest: object) -> Study:
    given = {"plan": {"resamples": 199}, "factors": FACTORS, "registered": True}
    given |= {"titles": {"restkv": "ReST-KV"}, **manifest}
    return build.study(samples, given)


@cache
def whole() -> Study:
    """The study of `WHOLE`, made once: to be read only."""
    return study(study_samples(WHOLE))
