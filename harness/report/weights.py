"""Where the weight of the observation windows fell: on which parts of the prompts.

Knows the segments of prompts and weights a query; must not know how methods make them.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from harness import stats

COLUMNS = [*stats.GROUP, "method", "segment", "share"]


def shares(
    samples: pd.DataFrame, prompts: pd.DataFrame, windows: Mapping[str, Mapping[str, object]]
) -> pd.DataFrame:
    """The share of each variant's window weight by segment, the mean over rows.

    Args:
        samples: give the tokens that were in the cache at eviction, by row.
        prompts: model, task, protocol, row and segments: a JSON list of [segment, tokens] in the
            order of the prompt.
        windows: label to `weights`, one a query of the window, oldest first, summing to 1, and
            `behind`: whether the window ends before the last run of template tokens.

    Returns:
        Columns `COLUMNS`; no rows without segments. Rows whose cache is shorter than a window are
        left out of its mean.
    """
    if prompts.empty or not windows:
        return pd.DataFrame(columns=COLUMNS)
    place = [*stats.GROUP, "row"]
    lengths = samples.drop_duplicates(place)[[*place, "evictable_tokens"]]
    rows = prompts[[*place, "segments"]].merge(lengths, on=place)
    # Most prompts of a task are alike in what their last tokens are: count each kind once.
    kinds = rows.groupby([*stats.GROUP, "segments", "evictable_tokens"], sort=False).size()
    found = [
        {**dict(zip(stats.GROUP, key[:3], strict=True)), "method": label, "segment": segment,
         "share": share, "rows": count}
        for label, window in windows.items()
        for key, count in kinds.items()
        for segment, share in _row(key[3], int(key[4]), window).items()
    ]  # fmt: skip
    if not found:
        return pd.DataFrame(columns=COLUMNS)
    return _means(pd.DataFrame(found))


def _means(found: pd.DataFrame) -> pd.DataFrame:
    keys = [*stats.GROUP, "method", "segment"]
    found["weighed"] = found["share"] * found["rows"]
    total = found.groupby(keys, sort=False)["weighed"].sum()
    # Shares of a row sum to 1, so their sum over segments counts the rows.
    whole = total.groupby(keys[:-1], sort=False).transform("sum")
    return (total / whole).rename("share").reset_index()[COLUMNS]


def _row(segments: str, evictable: int, window: Mapping[str, object]) -> dict[str, float]:
    runs = [(str(name), int(count)) for name, count in json.loads(segments)]
    names = np.repeat([name for name, _ in runs], [count for _, count in runs])
    end = evictable
    if window.get("behind") and runs and runs[-1][0] == "template":
        end = min(end, len(names) - runs[-1][1])
    weights = window["weights"]
    assert isinstance(weights, Sequence)
    seen = names[max(0, end - len(weights)) : end]
    if len(seen) < len(weights):
        return {}
    found: dict[str, float] = {}
    for name, weight in zip(seen, weights, strict=True):
        found[str(name)] = found.get(str(name), 0.0) + float(weight)
    return found
