"""How far each kind of question is from the full cache."""

import numpy as np
import pandas as pd
import pytest

from harness import stats
from harness.stats.paired import paired
from tests.outputs.conftest import cell_rows

INDEX = [5, 1_000_005, 6, 1_000_006, 9]
QUESTION = np.array([5, 5, 6, 6, 9])


def test_abilities_say_how_far_they_are_from_the_full_cache():
    samples = pd.concat(
        [
            cell_rows("full", [1, 1, 1, 0, 1], index=INDEX),
            cell_rows("full", [0, 1, 0, 0, 0], index=INDEX, control="blank_image"),
            cell_rows("restkv", [1, 0, 0, 1, 0], index=INDEX, ratio=0.9),
        ]
    )
    table = stats.abilities(samples)
    assert list(table.columns) == stats.ABILITY_COLUMNS
    names = ["difference", "difference_low", "difference_high"]
    methods = stats.roles(table).eq("method")
    assert table.loc[~methods, names].isna().all(axis=None)
    rows = table[methods].set_index("ability")
    for ability, at in {"ocr": [0, 1, 4], "counting": [2, 3], "perception": range(5)}.items():
        found = paired(np.array([0.0, -1, -1, 1, -1])[list(at)], QUESTION[list(at)])
        want = [found.difference, *found.interval()]
        assert rows.loc[ability, names].tolist() == pytest.approx(want)
    alone = stats.abilities(samples[samples["method"] == "restkv"])
    assert alone[names].isna().all(axis=None)
    assert alone["accuracy"].notna().all()
    assert stats.abilities(samples.assign(score=np.nan))[names].isna().all(axis=None)
