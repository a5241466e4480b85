import json

import pandas as pd
import pytest

from harness import stats
from harness.report import weights

PLACE = {"model": "m", "task": "t", "protocol": "replay"}


def frames(*rows: tuple[list[tuple[str, int]], int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    prompts = [
        {**PLACE, "row": place, "segments": json.dumps(runs)}
        for place, (runs, _) in enumerate(rows)
    ]
    samples = [
        {**PLACE, "row": place, "evictable_tokens": seen}
        for place, (_, seen) in enumerate(rows)
        for _ in range(2)  # two cells
    ]
    return pd.DataFrame(samples), pd.DataFrame(prompts)


RUNS = [("template", 2), ("image", 4), ("question", 3), ("template", 2)]  # 11 tokens
WINDOW = {"weights": [0.1, 0.2, 0.3, 0.4], "behind": False}


def shares(samples: pd.DataFrame, prompts: pd.DataFrame, **windows: object) -> dict[str, float]:
    table = weights.shares(samples, prompts, windows)
    assert table.columns.tolist() == weights.COLUMNS
    assert table.groupby([*stats.GROUP, "method"])["share"].sum().to_numpy() == pytest.approx(1)
    return table.set_index("segment")["share"].to_dict()


def test_the_window_ends_where_the_cache_does():
    whole = shares(*frames((RUNS, 11)), a=WINDOW)
    assert whole == pytest.approx({"question": 0.3, "template": 0.7})
    replayed = shares(*frames((RUNS, 10)), a=WINDOW)  # all but the last token
    assert replayed == pytest.approx({"question": 0.6, "template": 0.4})


def test_a_window_on_the_question_ends_before_the_suffix():
    found = shares(*frames((RUNS, 11)), a=WINDOW | {"behind": True})
    assert found == pytest.approx({"image": 0.1, "question": 0.9})


def test_rows_count_alike():
    other = [("template", 7), ("question", 4)]
    found = shares(*frames((RUNS, 11), (other, 11), (other, 11)), a=WINDOW)
    assert found == pytest.approx({"question": (0.3 + 2) / 3, "template": 0.7 / 3})


def test_prompts_shorter_than_the_window_are_left_out():
    found = shares(*frames((RUNS, 11), ([("question", 3)], 3)), a=WINDOW)
    assert found == pytest.approx({"question": 0.3, "template": 0.7})
    assert weights.shares(*frames(([("question", 3)], 3)), {"a": WINDOW}).empty


def test_nothing_recorded_gives_no_rows():
    samples, prompts = frames((RUNS, 11))
    assert weights.shares(samples, prompts.iloc[:0], {"a": WINDOW}).empty
    assert weights.shares(samples, prompts, {}).columns.tolist() == weights.COLUMNS
