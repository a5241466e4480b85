"""Every compressed cell against the full cache on the same rows: the comparisons table.

Works on the samples frame alone. It must not know of tensors, of lmms-eval, of Hydra or of how the
numbers are shown.
"""

from collections.abc import Hashable

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar

from harness.stats.cells import Samples, described
from harness.stats.frame import GROUP, roles
from harness.stats.intervals import accuracy_interval
from harness.stats.known import mean
from harness.stats.paired import paired
from harness.stats.pairing import circular, questions_of, wide, with_blank, with_logits
from harness.stats.plan import Plan
from harness.stats.power import detectable_loss, questions_least, questions_needed
from harness.stats.resampling import ratio_intervals

COMPARISON_COLUMNS = [
    *GROUP, "group", "metric", "method", "ratio", "budget", "cell_key", "n_questions", "n_rows",
    "failed_rows", "complete", "evicted", "vacuous", "adaptive_active", "accuracy", "full_accuracy",
    "blank_accuracy", "difference", "difference_low", "difference_high", "bootstrap_low",
    "bootstrap_high", "lower", "upper", "p_noninferior", "p_noninferior_holm", "p_equivalent",
    "p_equivalent_holm", "lost", "gained", "p_mcnemar", "p_mcnemar_holm", "family", "detectable",
    "questions_least", "questions_needed", "flip_rate", "flip_low", "flip_high", "kl", "kl_low",
    "kl_high", "retained", "retained_low", "retained_high",
]  # fmt: skip
MEASURED = [
    "cell", "row", "question_id", "complete", "correct", "difference", "flip", "kl", "above_blank",
    "room",
]  # fmt: skip
TYPES = dict.fromkeys(("budget", "lost", "gained", "questions_least", "questions_needed"), "Int64")
TYPES |= {"group": "string"} | dict.fromkeys(("complete", "vacuous", "family"), "bool")


def compare(samples: Samples, plan: Plan) -> pd.DataFrame:
    """The comparisons table: a row a compressed cell, columns `COMPARISON_COLUMNS`.

    `accuracy` and the counts are those of `summarise`; all that compares is over the rows that the
    cell and the full cache both have. Fractions throughout; questions are the unit of chance.

    complete: has every row that the full cache has. evicted: 1 - kept_fraction, as measured.
    difference: mean score less the full cache's; its `_low`, `_high` (95 %), `lower` and `upper`
    (each 1 - alpha) are those of Gaffke's test of questions (`Paired`), `bootstrap_` those of a
    cluster bootstrap (BCa, 95 %). p_noninferior: of "the loss is the margin or more". p_equivalent:
    of "loss or gain are the margin or more", the larger p of two one-sided tests. lost, gained:
    questions whose circular correctness the cell lost and gained, of those that both have in all
    rotations; p_mcnemar: McNemar's exact test of them. family: the method asked about, evicting
    more than `plan.above`, not vacuous, with a full cache; `_holm` adjusts over it in each (model,
    task, protocol) group and is nan outside. detectable, questions_least, questions_needed: see
    `power`, these two at the level that the first of the family has to reach. flip_rate: parsed
    answers that changed. kl: mean KL(full || cell) of the option logits in nats. retained:
    (accuracy - blank) / (full - blank), what is left of the part that needs the image.

    What cannot be said is nan: without a full cache, with failed rows, with secret answers (but for
    flips and kl), without option logits, without a blank image or where it scores as much as the
    full cache.
    Order: as `summarise`.

    Raises:
        ValueError: as `summarise`.
    """
    known = described(samples)
    frame, cells = with_blank(with_logits(known.frame)), known.cells
    frame = frame[MEASURED]
    parts = [
        _group(frame[frame["cell"].isin(part["cell"])], part, plan)
        for _, part in cells.groupby(GROUP, sort=False)
    ]
    table = pd.concat(parts, ignore_index=True)
    return table[COMPARISON_COLUMNS].astype(TYPES)


def _group(frame: pd.DataFrame, cells: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """The rows of one model, task and protocol."""
    role = roles(cells)
    table = cells[role.eq("method")].reset_index(drop=True)
    full, blank = (cells[role.eq(name)].nsmallest(1, "cell") for name in ("full", "blank"))
    turns = circular(frame)
    wanted = frame.loc[frame["cell"].isin(full["cell"]) | full.empty, "row"]
    evicted = 1 - table["kept_fraction"]
    asked = table["method"].eq(plan.method) & (evicted > plan.above)
    family = asked & ~table["vacuous"].astype(bool) & (not full.empty)
    level = plan.alpha / max(1, family.sum())
    columns = {name: frame[name].to_numpy() for name in MEASURED}
    measured = []
    for number in table["cell"]:
        own = columns["cell"] == number
        rows = {name: values[own] for name, values in columns.items()}
        found = _tests(rows, plan, level) | {"complete": np.isin(wanted, rows["row"]).all()}
        if not np.isnan(rows["difference"]).all():
            found |= changed_questions(turns[number], turns[full["cell"].item()])
        measured.append(found)
    table = pd.concat([table, pd.DataFrame(measured), _resampled(frame, table, plan)], axis=1)
    table = table.assign(
        evicted=evicted,
        full_accuracy=np.nan if full.empty else full["accuracy"].item(),
        blank_accuracy=np.nan if blank.empty else blank["accuracy"].item(),
        family=family,
    ).reindex(columns=COMPARISON_COLUMNS)
    for name in ("p_noninferior", "p_equivalent", "p_mcnemar"):
        table[f"{name}_holm"] = holm(table[name], table["family"])
    return table


def _tests(rows: dict[str, np.ndarray], plan: Plan, level: float) -> dict[Hashable, object]:
    """What the rows of one cell say by themselves; level: of the family's first test."""
    both, flips, seen = (~np.isnan(rows[name]) for name in ("difference", "flip", "above_blank"))
    found = paired(rows["difference"][both], rows["question_id"][both])
    low, high = found.interval()
    flip_low, flip_high = accuracy_interval(rows["flip"][flips], rows["question_id"][flips])
    room = rows["room"][seen].sum()
    return {
        "difference": found.difference,
        "difference_low": low,
        "difference_high": high,
        "lower": found.lower(plan.alpha),
        "upper": found.upper(plan.alpha),
        "p_noninferior": found.p_above(-plan.margin),
        "p_equivalent": found.p_equivalent(plan.margin),
        "detectable": detectable_loss(found, plan.alpha, plan.power),
        "questions_least": questions_least(found, plan.margin, level),
        "questions_needed": questions_needed(found, plan.margin, level, plan.power),
        "flip_low": flip_low,
        "flip_high": flip_high,
        "kl": mean(rows["kl"]),
        "retained": rows["above_blank"][seen].sum() / room if room > 0 else np.nan,
    }


def changed_questions(cell: pd.Series, full: pd.Series) -> dict[Hashable, object]:
    """Questions lost and gained and McNemar's exact test of them.

    Args:
        cell, full: whether each question is right in all its rotations, 1.0 or 0.0; nan where that
            is not known, and such a question does not count.
    """
    lost, gained = int((full > cell).sum()), int((full < cell).sum())
    p = mcnemar([[0, lost], [gained, 0]], exact=True).pvalue
    return {"lost": lost, "gained": gained, "p_mcnemar": float(p)}


def _resampled(frame: pd.DataFrame, table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Bootstrap intervals of all cells, from the same resamples."""
    names = ("difference", "kl", "above_blank")
    above = np.concatenate([wide(frame, name, table["cell"]) for name in names])
    room = wide(frame, "room", table["cell"])
    below = np.concatenate([np.ones((2 * len(room), room.shape[1])), room])
    limits = ratio_intervals(above, below, questions_of(frame), plan.resamples, plan.seed)
    places = ("bootstrap", "kl", "retained")
    parts = np.split(limits, len(places))
    found = {
        f"{a}_{b}": part[:, i]
        for a, part in zip(places, parts, strict=True)
        for i, b in enumerate(("low", "high"))
    }
    return pd.DataFrame(found)


def holm(values: pd.Series, family: pd.Series) -> pd.Series:
    """Holm's adjusted p-values over the family; nan outside and where there is no p-value.

    Equal to statsmodels' `multipletests`, which collects the garbage of the whole process at each
    call: half a second and more where torch and a model are loaded.
    """
    inside = values[family & values.notna()].sort_values()
    stepped = (inside * np.arange(len(inside), 0, -1)).cummax().clip(upper=1.0)
    return stepped.reindex(values.index)
