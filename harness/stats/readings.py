"""The samples as another published reading of the same answers scores them.

Works on the samples frame alone; must not know tests or tables.
"""

import numpy as np
import pandas as pd

from harness.stats.frame import GROUP

FULL_SCORE = 1 - 1e-6  # ROUGE's own falls short of 1 by a billionth


def other(samples: pd.DataFrame) -> pd.DataFrame | None:
    """The groups whose answers have a second reading, read that way; None where none has.

    A row without a score in the first reading, secret or failed, has none in the second.
    """
    if "score_other" not in samples or "score" not in samples:
        return None
    scores = samples["score_other"].astype("Float64").to_numpy("float64", na_value=np.nan)
    scores = pd.Series(scores, samples.index).where(samples["score"].notna())
    lacking = scores.isna() & samples["score"].notna()
    places = [samples[name] for name in GROUP]
    some = scores.notna().groupby(places).transform("any")
    read = some & ~lacking.groupby(places).transform("any")
    if not read.any():
        return None
    renamed = {f"{name}_other": name for name in ("parsed", "unparsed")}
    found = {name: samples[second] for second, name in renamed.items() if second in samples}
    if "unparsed" in found:
        found["unparsed"] = found["unparsed"].fillna(False)  # of a failed row, as in the first
    return samples.assign(score=scores, correct=scores >= FULL_SCORE, **found)[read]
