"""How the losses of two groups differ: the same method on two models, or under two protocols.

Works on the samples frames alone. It must not know of tensors, of lmms-eval, of Hydra or of how the
numbers are shown.
"""

import pandas as pd

from harness.stats.cells import Samples, described
from harness.stats.frame import roles
from harness.stats.paired import paired

SETTING = ["method", "ratio", "budget"]
LOSS_COLUMNS = [*SETTING, "n_questions", "difference", "low", "high", "p"]


def losses(samples: Samples) -> pd.DataFrame:
    """Each compressed row's score less that of the full cache on the same row.

    Args:
        samples: a row a cell and question row, of one model, task and protocol.

    Returns:
        Columns method, ratio, budget, row, question_id and loss; rows without both scores are left
        out.
    """
    frame = described(samples).frame
    frame = frame[roles(frame).eq("method")]
    table = frame[[*SETTING, "row", "question_id"]].assign(loss=frame["difference"])
    return table[table["loss"].notna()]


def between(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """By how much two losses differ, for every method and setting that both have.

    Paired by question row, so both must have been asked the same questions. difference: mean of
    loss(one) - loss(other) over the rows of both, above 0 where `one` loses less; low, high (95 %)
    and p (against 0, two-sided) are those of Gaffke's test (`Paired`), the question being the unit.

    Args:
        one, other: `losses` of two groups.

    Returns:
        A row a method and setting, in the order of `one`; columns `LOSS_COLUMNS`.
    """
    both = one.merge(other, on=[*SETTING, "row", "question_id"], suffixes=("", "_other"))
    found = []
    for place, rows in both.groupby(SETTING, sort=False, dropna=False):
        values = (rows["loss"] - rows["loss_other"]).to_numpy(float)
        test = paired(values, rows["question_id"].to_numpy(), 2.0)
        numbers = (test.questions, test.difference, *test.interval(), test.p_equal())
        found.append([*place, *numbers])
    return pd.DataFrame(found, columns=LOSS_COLUMNS).astype({"budget": "Int64"})
