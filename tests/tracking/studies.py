"""A study of three groups: ratios with everything in it, absolute budgets, and nothing but vacuous.

The frames of comparisons, ablation and verdicts hold their columns and made-up numbers.
"""

import numpy as np
import pandas as pd
from PIL import Image

from harness import stats
from harness.report import tables
from harness.report.study import Study
from harness.stats.plan import Plan
from tests.outputs.conftest import cell_rows, sweep

HOSTILE = {
    3: 'a|b <script>alert("1")</script>\n\t\x07 {"_type": "image-file"}',
    6: "🙂 ünïcödé \u202e " + "x" * 5000,
    9: "nan",
}
QUESTIONS = 60
METHODS = ("random", "snapkv", "restkv", "restkv_mean", "v1.5+x", "v1.5_x")
BUDGETS = (64, 16, 101)  # with the last nothing is evicted
PLACES = [("mini", "replay"), ("other", "replay"), ("mini", "paper")]  # task, protocol
COMPARISON_COLUMNS = [
    *stats.GROUP, "group", "metric", "method", "ratio", "budget", "cell_key", "n_questions",
    "n_rows", "complete", "evicted", "vacuous", "adaptive_active", "accuracy", "full_accuracy",
    "blank_accuracy", "difference", "difference_low", "difference_high", "bootstrap_low",
    "bootstrap_high", "lower", "upper", "p_noninferior", "p_noninferior_holm", "p_equivalent",
    "p_equivalent_holm", "lost", "gained", "p_mcnemar", "p_mcnemar_holm", "family", "detectable",
    "questions_least", "questions_needed", "flip_rate", "flip_low", "flip_high", "kl", "kl_low",
    "kl_high", "retained", "retained_low", "retained_high",
]  # fmt: skip
EFFECTS = [  # effect, contrast, given, inert at ratio 0.9
    ("temporal", "ema - mean", "spatial=none", False),
    ("temporal", "ema - mean", "mean of 2", False),
    ("spatial", "avg - none", "mean of 2", False),
    ("spatial", "adaptive - none", "mean of 2", False),
    ("spatial", "adaptive - avg", "mean of 2", True),
    ("spatial", "relative - none", "temporal=ema", False),
    ("spatial", "relative - adaptive", "mean of 2", False),
    ("interaction", "ema - mean, avg - none", "", False),
    ("smoothing", "ema+adaptive - mean+none", "", False),
]


def study() -> Study:
    """The same on every call."""
    samples = pd.concat([_ratios(), _budgets(), _vacuous()], ignore_index=True)
    cells = stats.summarise(samples)
    comparisons = compared(cells)
    return Study(
        name="a sweep",
        question="Does it keep its accuracy?",
        plan=Plan(),
        samples=samples,
        cells=cells,
        abilities=stats.abilities(samples),
        means=stats.means(cells),
        comparisons=comparisons,
        ablation=ablated(cells),
        verdicts=ruled(comparisons),
        contrasts=contrasted(comparisons),
        told=("told once",),
        caveat="A model made for tests.",
    )


def image(task: str, row: int) -> Image.Image | None:
    """A picture whose colour is its row, as a photograph for print would come; none for row 0."""
    return None if row == 0 else Image.new("RGB", (8, 6), (row, len(task), 0)).convert("RGBA")


def own(frame: pd.DataFrame, place: tuple[str, str]) -> pd.DataFrame:
    """The rows of one of the `PLACES`."""
    return frame[frame["task"].eq(place[0]) & frame["protocol"].eq(place[1])]


def _ratios() -> pd.DataFrame:
    frame = sweep(METHODS, ratios=(0.9, 0.5, 0.975), questions=QUESTIONS, rotations=3)
    frame["group"] = "minis"
    empty = frame["method"].eq("random") & frame["ratio"].eq(0.5)
    frame.loc[empty, "exposed_tokens"] = 0
    for row, text in HOSTILE.items():
        frame.loc[frame["row"].eq(row) & frame["ratio"].eq(0.9), ["text", "question"]] = text
    return frame


def _budgets() -> pd.DataFrame:
    index = list(range(6))
    frames = [
        cell_rows("full", [True] * 6, index=index),
        cell_rows("blank_image", [False] * 6, index=index, control="blank_image"),
    ]
    for place, method in enumerate(METHODS):
        for budget in BUDGETS if place else BUDGETS[::2]:
            right = [True] * 6 if budget == 101 else [row != place for row in index]
            cell = cell_rows(method, right, index=index, ratio=float("nan"), budget=budget)
            frames.append(cell.assign(exposed_tokens=0 if budget == 101 else 2))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(task="other", cell_key=frame["cell_key"] + "-other", group=None)


def _vacuous() -> pd.DataFrame:
    """Answers that come from the prefill: every cell repeats the full cache."""
    frame = sweep(METHODS, ratios=(0.5,), questions=4, rotations=1, exposed_tokens=0)
    full = frame[frame["method"].eq("full")]
    answers = ["text", "parsed", "correct"]
    for method in METHODS:
        frame.loc[frame["method"].eq(method), answers] = full[answers].to_numpy()
    return frame.assign(protocol="paper", cell_key=frame["cell_key"] + "-paper", group=None)


def compared(cells: pd.DataFrame) -> pd.DataFrame:
    rows = cells[stats.roles(cells).eq("method")].reset_index(drop=True)
    rng = np.random.default_rng(1)
    frame = rows.reindex(columns=COMPARISON_COLUMNS)
    for column in COMPARISON_COLUMNS[15:]:
        frame[column] = rng.uniform(-1, 1, len(frame))
    frame = frame.assign(
        vacuous=rows["vacuous"], complete=True, family=rows["method"].eq("restkv"),
        evicted=1 - rows["kept_fraction"], questions_needed=pd.NA, kl=np.nan, lower=-np.inf,
    )  # fmt: skip
    frame.loc[frame["method"].eq("snapkv") & frame["ratio"].eq(0.9), "difference_low"] = np.nan
    return frame.astype({"questions_needed": "Int64"})


def ablated(cells: pd.DataFrame) -> pd.DataFrame:
    places = cells[stats.roles(cells).eq("method")]
    places = places[[*stats.GROUP, "ratio", "budget"]].drop_duplicates()
    rng = np.random.default_rng(2)
    rows = [
        {
            **place, "effect": effect, "contrast": contrast, "given": given, "n_questions": 9,
            "difference": rng.uniform(), "low": rng.uniform(), "high": rng.uniform(),
            "bootstrap_low": 0.0, "bootstrap_high": 0.0, "p": 0.5, "p_holm": np.nan,
            "adaptive_active": 0.5, "inert": inert and place["ratio"] == 0.9, "evicted": 0.5,
        }
        for place in places.to_dict("records")
        for effect, contrast, given, inert in EFFECTS
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"budget": "Int64"})


def ruled(comparisons: pd.DataFrame) -> pd.DataFrame:
    rows = comparisons[comparisons["method"].eq("restkv")]
    frame = rows[[*stats.GROUP, "method", "ratio", "budget", "evicted"]].copy()
    frame["verdict"] = ["cannot tell", *["supported"] * (len(frame) - 1)]
    frame["reason"] = [f"It loses nothing at {tables.setting(row)}." for _, row in rows.iterrows()]
    return frame.assign(smoothing="not supported", smoothing_reason="It does not help.")


def contrasted(comparisons: pd.DataFrame) -> pd.DataFrame:
    rows = comparisons[comparisons["method"].eq("restkv")]
    frame = rows[[*stats.GROUP, "ratio", "budget", "evicted"]]
    return frame.assign(
        label="restkv", against="restkv_mean", called="smoothing", difference=-0.1, low=-0.2,
        high=0.0, effect="costs", reason="It costs.",
    )  # fmt: skip
