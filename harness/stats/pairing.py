"""Every row beside the full cache's and the blank image's answer to the same question row.

Works on a prepared samples frame; must not know tests or tables.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.stats.frame import group_numbers, heads, roles
from harness.stats.logits import divergences, option_logs


def against_full(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with how each row differs from the full cache's, nan where that has no such row.

    Adds `at_full` and `at_blank`: where these answered the same row, -1 for nowhere; `flip`: 1.0
    where the parsed answer is another (unparsed against unparsed is none), nan too where the full
    cache has no parsed answer in the whole group and where a row of either cell failed; and
    `difference`: the score less the full cache's, nan too in cells some of whose scores are not
    known.
    """
    cell, group = frame["cell"].to_numpy(), group_numbers(frame)
    rows, numbers = pd.factorize(frame["row"])
    role = roles(heads(frame)).to_numpy(dtype=object)[cell]
    full, blank = (
        partners(group * len(numbers) + rows, role == name) for name in ("full", "blank")
    )
    answers = frame["parsed"].fillna("").astype(str).to_numpy(dtype=object)
    parsed = (role == "full") & (answers != "")
    flips = np.where(answers != answers[full], 1.0, 0.0)
    scores = known_scores(frame)
    return frame.assign(
        at_full=full,
        at_blank=blank,
        flip=np.where(any_of(group, parsed) & sound(frame, full), flips, np.nan),
        difference=scores - beside(scores, full),
    )


def with_logits(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `kl`: KL(full || row) of the option logits in nats, nan where not told."""
    if "letter_logits" not in frame:
        return frame.assign(kl=np.nan)
    full, logs = frame["at_full"].to_numpy(), option_logs(frame["letter_logits"])
    kl, both = np.full(len(frame), np.nan), sound(frame, full)
    kl[both] = divergences(logs[full[both]], logs[both])
    return frame.assign(kl=kl)


def with_blank(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `above_blank` and `room`: the row's and the full cache's gain over blank.

    Both are differences of scores, nan where the blank image or the full cache has no such row.
    """
    full, blank = frame["at_full"].to_numpy(), frame["at_blank"].to_numpy()
    scores = known_scores(frame)
    below, above = beside(scores, blank), beside(scores, full)
    return frame.assign(
        above_blank=np.where(np.isnan(above), np.nan, scores - below), room=above - below
    )


def partners(places: np.ndarray, own: np.ndarray) -> np.ndarray:
    """For each row the first of the `own` rows at the same place: [rows], -1 without one."""
    found = np.full(places.max() + 1, -1)
    rows = np.flatnonzero(own)[::-1]  # of several the one that is set last stays
    found[places[rows]] = rows
    return found[places]


def any_of(numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each row whether `rows` holds for some row with the same number: bool [rows]."""
    return np.bincount(numbers, rows)[numbers] > 0


def sound(frame: pd.DataFrame, partner: np.ndarray) -> np.ndarray:
    """Whether a row has a partner and no row failed of its own cell or of its partner's."""
    whole = ~any_of(frame["cell"].to_numpy(), frame["failed"].to_numpy())
    return (partner >= 0) & whole & whole[partner]


def known_scores(frame: pd.DataFrame) -> np.ndarray:
    """The scores; nan in every row of a cell that has a failed row or one with a secret answer."""
    scores = frame["score"].to_numpy()
    return np.where(any_of(frame["cell"].to_numpy(), np.isnan(scores)), np.nan, scores)


def beside(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The values at the places; nan where that is -1."""
    return np.where(places >= 0, values[places], np.nan)


def wide(frame: pd.DataFrame, name: str, cells: Sequence[int]) -> np.ndarray:
    """One group's column as a matrix, float64 [cells, rows]: rows ascending, nan where missing."""
    table = frame.pivot(index="cell", columns="row", values=name)
    return table.reindex(cells).to_numpy(dtype=float)


def questions_of(frame: pd.DataFrame) -> np.ndarray:
    """The question of each column of `wide`."""
    return frame.drop_duplicates("row").sort_values("row")["question_id"].to_numpy()


def circular(frame: pd.DataFrame) -> pd.DataFrame:
    """Whether each question was right in all its rotations: a row a question, a column a cell.

    1.0 or 0.0; nan where the cell lacks a rotation that other cells of its group have.
    """
    turns = frame.groupby(["question_id", "cell"])[["complete", "correct"]].all()
    return turns["correct"].astype(float).where(turns["complete"]).unstack("cell")
