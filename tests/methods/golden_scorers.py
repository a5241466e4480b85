"""Methods whose stored scores cover the whole prompt, against NVIDIA's kvpress and others."""

from __future__ import annotations

import methods
from tests.methods.golden_data import Case, expect_close, expect_same_sets, output, view


def check_knorm(case: Case) -> None:
    policy = methods.build("knorm")
    layer = view(case["inputs"], per_query_head=False)
    scores = policy.score(layer, case["n_kept"])
    expect_close(scores, output("knorm", case, "score"), "score")
    expect_same_sets("knorm", case, policy.keep(layer, case["n_kept"]), scores)
