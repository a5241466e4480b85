"""Studies made from samples frames with known truth, and the frames they need beside them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from harness import stats
from harness.report import tables
from harness.report.study import Study
from harness.stats.plan import Plan
from tests.outputs.conftest import sweep

METHODS = ("random", "snapkv", "restkv", "restkv_mean", "restkv_nospatial", "restkv_neither")
QUESTION = "Does smoothing keep accuracy when more than half of the cache is evicted?"
HEADLINE = ("Cannot tell: that restkv keeps the score is undecided.", "Nor that smoothing does.")
PLACE = [*stats.GROUP, "method", "ratio", "budget", "cell_key"]


def study(samples: pd.DataFrame | None = None, *, seed: int = 0, **changes: object) -> Study:
    """A study of the samples, `sweep(METHODS)` unless given, with every frame filled."""
    samples = sweep(METHODS) if samples is None else samples
    rng = np.random.default_rng(seed)
    cells = stats.summarise(samples)
    compared = comparisons(cells, rng)
    parts = {
        "name": "demo", "question": QUESTION, "plan": Plan(), "samples": samples, "cells": cells,
        "abilities": abilities(samples, rng), "means": stats.means(cells), "comparisons": compared,
        "ablation": ablation(cells, rng), "verdicts": verdicts(compared),
        "contrasts": contrasts(compared),
        "told": ("Answers are read by one rule.",), "caveat": "The model is a stand-in.",
        "provenance": {"command": "make sweep", "software": {"torch": "9.9.9"}, "cells": 14},
    }  # fmt: skip
    return Study(**{**parts, **changes})


def interval(rng: np.random.Generator, middle: float, half: float = 0.03) -> tuple[float, float]:
    low, high = rng.uniform(0.2 * half, half, 2)
    return middle - low, middle + high


def comparisons(cells: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Differences are the cells' own, everything else is drawn."""
    return pd.concat(
        [_compared(group, rng) for _, group in tables.groups(cells)], ignore_index=True
    )


def _compared(cells: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    references = tables.references(cells).set_index("label")["accuracy"]
    full, blank = (references.get(name, np.nan) for name in ("full cache", "blank image"))
    rows = []
    for _, cell in cells[stats.roles(cells).eq("method")].iterrows():
        difference = cell["accuracy"] - full
        p = rng.random(4)
        flip, kl = float(cell["flip_rate"]), rng.uniform(0.01, 1)
        retained = (cell["accuracy"] - blank) / (full - blank) if full > blank else np.nan
        names = ("difference", "bootstrap", "flip", "kl", "retained")
        middles = (difference, difference, flip, kl, retained)
        ends = {
            f"{name}_{end}": value
            for name, middle in zip(names, middles, strict=True)
            for end, value in zip(("low", "high"), interval(rng, middle), strict=True)
        }
        evicted = 1 - cell["kept_fraction"]
        rows.append({
            **cell[[*PLACE, "group", "metric", "n_questions", "n_rows", "vacuous",
                    "adaptive_active", "accuracy"]],
            "complete": True, "evicted": evicted, "full_accuracy": full, "blank_accuracy": blank,
            "difference": difference, "lower": ends["difference_low"],
            "upper": ends["difference_high"], "p_noninferior": p[0], "p_noninferior_holm": p[1],
            "p_equivalent": p[0] / 2, "p_equivalent_holm": p[1] / 2, "questions_least": 149,
            "lost": int(rng.integers(0, 9)), "gained": int(rng.integers(0, 9)),
            "p_mcnemar": p[2], "p_mcnemar_holm": p[3] / 10_000,
            "family": cell["method"] == "restkv" and evicted > 0.5 and not cell["vacuous"],
            "detectable": rng.uniform(0.01, 0.1), "questions_needed": int(rng.integers(50, 5000)),
            "flip_rate": flip, "kl": kl, "retained": retained, **ends,
        })  # fmt: skip
    return pd.DataFrame(rows)


def abilities(samples: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    frame = stats.abilities(samples)
    middle = rng.uniform(-0.4, 0.1, len(frame))
    middle = np.where(stats.roles(frame).eq("method"), middle, np.nan)
    half = rng.uniform(0.01, 0.05, len(frame))
    return frame.assign(
        difference=middle, difference_low=middle - half, difference_high=middle + half
    )


def ablation(cells: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Effects of a 2 x 2 of temporal and spatial smoothing; those of the window are inert."""
    effects = [
        ("smoothing", "ema+adaptive - mean+none", ""),
        ("temporal", "ema - mean", "spatial=adaptive"),
        ("temporal", "ema - mean", "spatial=none"),
        ("temporal", "ema - mean", "mean of 2"),
        ("spatial", "adaptive - none", "temporal=ema"),
        ("spatial", "adaptive - avg", "temporal=ema"),
        ("interaction", "ema - mean, adaptive - none", ""),
    ]
    rows = []
    for key, group in tables.groups(cells):
        own = group[group["method"].eq("restkv")]
        for _, cell in own.iterrows():
            for effect, contrast, given in effects:
                middle = rng.normal(0, 0.03)
                low, high = interval(rng, middle, 0.05)
                rows.append({
                    **dict(zip(stats.GROUP, key, strict=True)), "ratio": cell["ratio"],
                    "budget": cell["budget"], "effect": effect, "contrast": contrast,
                    "given": given, "n_questions": cell["n_questions"], "difference": middle,
                    "low": low, "high": high, "bootstrap_low": low, "bootstrap_high": high,
                    "p": rng.random(), "p_holm": rng.random() if effect == "smoothing" else np.nan,
                    "adaptive_active": 0.0, "inert": contrast == "adaptive - avg",
                    "evicted": 1 - cell["kept_fraction"],
                })  # fmt: skip
    return pd.DataFrame(rows)


def verdicts(compared: pd.DataFrame) -> pd.DataFrame:
    """A row a setting of the family, all three verdicts in turn."""
    if compared.empty:
        return pd.DataFrame()
    rows = compared[compared["family"]].reset_index(drop=True)
    words = ("supported", "not supported", "cannot tell")
    names = ["evicted", "full_accuracy", "accuracy", "difference", "difference_low"]
    return rows[[*PLACE[:-1], *names, "difference_high"]].assign(
        verdict=[words[i % 3] for i in range(len(rows))],
        reason="It loses less than the margin.",
        why="it is wide",
        smoothing=[words[(i + 2) % 3] for i in range(len(rows))],
        smoothing_reason="The interval is wider than the margin either way.",
    )


def contrasts(compared: pd.DataFrame) -> pd.DataFrame:
    """restkv against restkv_neither at the settings of the family, each effect in turn."""
    if compared.empty:
        return pd.DataFrame()
    rows = compared[compared["family"]].reset_index(drop=True)
    effects = ("helps", "costs", "no difference", "cannot tell")
    return rows[[*stats.GROUP, "ratio", "budget", "evicted"]].assign(
        label="restkv", against="restkv_neither", called="smoothing", difference=-0.011,
        low=-0.032, high=0.013, p_holm=0.25, adaptive_active=0.0,
        effect=[effects[(i + 1) % 4] for i in range(len(rows))],
        reason="Smoothing may raise or lower the score.", why="it is wide",
    )  # fmt: skip


TEXT = [("template", ["USER", ":"]), ("image", 64), ("question", ["How", " many", " shapes", "?"]),
        ("options", ["\n", "A", ".", " two", "\n", "B", ".", " six"]),
        ("template", ["ASSISTANT", ":"])]  # fmt: skip


def prompts(
    cells: pd.DataFrame, rows: range = range(3), grids: list[list[int]] | None = None
) -> pd.DataFrame:
    """Prompts of 80 tokens, 64 of them an image of 8 x 8 patches unless `grids` says otherwise."""
    segments = [[name, part if isinstance(part, int) else len(part)] for name, part in TEXT]
    tokens = [
        token
        for _, part in TEXT
        for token in (["<image>"] * part if isinstance(part, int) else part)
    ]
    return pd.DataFrame([
        {
            **dict(zip(stats.GROUP, key, strict=True)), "row": row,
            "segments": json.dumps(segments), "tokens": json.dumps(tokens),
            "images": json.dumps([[2, 8, 8]] if grids is None else grids),
            "image": f"{row}.png",
        }
        for key, _ in tables.groups(cells)
        for row in rows
    ])  # fmt: skip


def kept(cells: pd.DataFrame, shown: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Random shares for all prompt tokens but the last."""
    rng = np.random.default_rng(seed)
    rows = []
    for _, cell in cells[stats.roles(cells).eq("method")].iterrows():
        for _, prompt in shown[shown["task"].eq(cell["task"])].iterrows():
            count = len(json.loads(prompt["tokens"])) - 1
            shares = rng.beta(0.4, 3, count).astype(np.float32)
            rows.append({**cell[[*PLACE, "control"]], "row": prompt["row"], "shares": shares})
    return pd.DataFrame(rows)


def draw_images(folder: Path, rows: range = range(3)) -> Path:
    for row in rows:
        image = Image.new("RGB", (128, 128), (230, 225, 215))
        ImageDraw.Draw(image).ellipse((20 + 10 * row, 30, 90, 100), fill=(30, 120, 160))
        image.save(folder / f"{row}.png")
    return folder


MINI = {"model": "tiny", "task": "mini", "protocol": "replay"}


def weights(methods: tuple[str, ...] = ("restkv", "restkv_mean"), seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    names = ["template", "question", "options", "instruction", "image"]
    return pd.DataFrame([
        {**MINI, "method": method, "segment": segment, "share": share}
        for method in methods
        for segment, share in zip(names, rng.dirichlet(np.ones(5)), strict=True)
    ])  # fmt: skip


def traced(folder: Path, samples: pd.DataFrame | None = None, **changes: object) -> Study:
    """A study with traces and pictures."""
    made = study(samples)
    shown = prompts(made.cells)
    more = {"prompts": shown, "kept": kept(made.cells, shown), "images": draw_images(folder)}
    return study(samples, **{**more, **changes})


def claims() -> pd.DataFrame:
    names = ["claim", "published", "source", "command", "measured", "on", "verdict"]
    return pd.DataFrame(
        [
            ["It keeps accuracy.", "-0.4 points", "table 2", "make sweep", "-0.1 points", "mini",
             "supported"],
            ["It is fast.", "10 x", "figure 5", "make bench", None, "mini", "cannot tell"],
        ],
        columns=names,
    )  # fmt: skip
