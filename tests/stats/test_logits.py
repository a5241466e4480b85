"""The divergence of option logits against float64 arithmetic, option by option."""

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest

from harness.stats import logits
from harness.stats.logits import divergences, option_logs


def kl(full: dict[str, float], cell: dict[str, float]) -> float:
    p, q = ({k: math.exp(v) for k, v in one.items()} for one in (full, cell))
    total_p, total_q = math.fsum(p.values()), math.fsum(q.values())
    return math.fsum(
        p[k] / total_p * math.log(p[k] / total_p * total_q / q[k]) for k in full
    )  # fmt: skip


def told(full: list[object], cell: list[object]) -> np.ndarray:
    texts = [json.dumps(one) if isinstance(one, dict) else one for one in [*full, *cell]]
    logs = option_logs(pd.Series(texts, dtype=object))
    return divergences(logs[: len(full)], logs[len(full) :])


def test_against_arithmetic_for_any_options(monkeypatch):
    monkeypatch.setattr(logits, "CHUNK", 7)
    rng = np.random.default_rng(0)
    letters = [list("ABCD")[:n] for n in rng.integers(2, 5, 40)]
    full, cell = (
        [dict(zip(names, rng.normal(0, 5, len(names)).tolist(), strict=True)) for names in letters]
        for _ in range(2)
    )
    turned = [dict(reversed(one.items())) for one in cell]  # the order of the letters is free
    assert told(full, turned) == pytest.approx([kl(*pair) for pair in zip(full, cell, strict=True)])
    assert told(full, full) == pytest.approx(np.zeros(40), abs=1e-15)


def test_only_differences_of_logits_matter_and_the_direction_does():
    a, b = {"A": 1000.0, "B": 1001.0}, {"A": -3.0, "B": 2.0}
    shifted = {"A": 0.0, "B": 1.0}
    forth, back = told([a, b], [b, a])
    assert forth == pytest.approx(kl(shifted, b))
    assert back == pytest.approx(kl(b, shifted))
    assert forth != pytest.approx(back)


def test_certain_answers_stay_finite():
    sure, other = {"A": 900.0, "B": 0.0}, {"A": 0.0, "B": 900.0}
    assert told([sure, sure], [other, sure]) == pytest.approx([900.0, 0.0])


def test_what_cannot_be_compared_is_nan():
    two, three = {"A": 1.0, "B": 0.0}, {"A": 1.0, "B": 0.0, "C": 2.0}
    nan, inf = float("nan"), float("inf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = told(
            [{}, None, {"A": 1.0}, two, three, {"A": nan, "B": 1.0}, two, two, two],
            [{}, None, {"A": 2.0}, three, two, two, {"A": -inf, "B": 1.0}, {"A": inf, "B": 1}, two],
        )
        assert option_logs(pd.Series(["{}", None], dtype=object)).shape == (2, 0)
        assert np.isnan(told([{}], [{}])).all()
    assert np.isnan(got[:-1]).all()
    assert got[-1] == 0
