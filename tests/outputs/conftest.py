"""A samples frame with known truth, one row a cell and question row, as the sweep writes it."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

TYPES = {"budget": "Int64", "window_effective": "Int64", "adaptive_active": "float"}
SamplesFactory = Callable[..., pd.DataFrame]


def cell_rows(*told: Any, **columns: Any) -> pd.DataFrame:
    """Rows of one cell, as `cell` describes it."""
    return framed([cell(*told, **columns)])


def cell(
    method: str,
    correct: Iterable[bool],
    *,
    index: Iterable[int],
    ratio: float = 0.0,
    control: str = "none",
    budget: int | None = None,
    **columns: object,
) -> dict[str, list]:
    """Columns of one cell; 101 evictable tokens of which 64 are image tokens, 256 bytes a token."""
    correct = [bool(value) for value in correct]
    index = list(index)
    evictable = 101
    kept = evictable - int(ratio * evictable) if budget is None else budget
    told: dict[str, object] = {
        "model": "tiny", "task": "mini", "protocol": "replay", "method": method,
        "ratio": float(ratio), "budget": budget, "control": control,
        "cell_key": f"{method}-{ratio}-{budget}-{control}",
        "row": range(len(index)), "index": index,
        "question_id": [i % 1_000_000 for i in index],
        "category": ["ocr" if i % 2 else "counting" for i in index],
        "l2_category": "perception", "question": "How many?", "answer": "A",
        "text": ["A" if value else "B" for value in correct],
        "parsed": ["A" if value else "B" for value in correct],
        "unparsed": False, "correct": correct,
        "exposed_tokens": 0 if method in ("full", "blank_image") else 2,
        "prompt_tokens": evictable + 1, "image_tokens": 64, "evictable_tokens": evictable,
        "kept_tokens": float(kept), "kept_image": 16.0, "kept_text": kept - 16.0,
        "cache_bytes": kept * 256, "full_cache_bytes": evictable * 256,
        "window_effective": None, "adaptive_active": None, "fallback": None,
        "letter_logits": "{}",
        "prefill_s": 0.5, "score_s": 0.25, "compact_s": 0.125, "decode_s": 1.0,
    }  # fmt: skip
    each = told | columns
    return {
        name: [value] * len(index) if isinstance(value, str) or not isinstance(value, Iterable)
        else list(value)
        for name, value in each.items()
    }  # fmt: skip


def framed(cells: Iterable[dict[str, list]]) -> pd.DataFrame:
    """The rows of all cells. One frame: a frame a cell takes several times as long."""
    cells = list(cells)
    names = dict.fromkeys(name for one in cells for name in one)
    missing = [[np.nan] * len(one["row"]) for one in cells]
    columns = {
        name: [*chain.from_iterable(map(dict.get, cells, repeat(name), missing))] for name in names
    }
    for name, kind in TYPES.items():
        columns[name] = pd.Series(columns[name], dtype=kind)
    return pd.DataFrame(columns)


def sweep(
    methods: Iterable[str] = ("random", "snapkv", "restkv"),
    ratios: Iterable[float] = (0.5, 0.9),
    questions: int = 12,
    rotations: int = 3,
    seed: int = 0,
    **columns: object,
) -> pd.DataFrame:
    """A whole sweep: full cache, blank image and every method at every ratio, seeded."""
    rng = np.random.default_rng(seed)
    index = [k * 1_000_000 + 7 + q for q in range(questions) for k in range(rotations)]
    cells = [
        cell("full", rng.random(len(index)) < 0.9, index=index),
        cell("blank_image", rng.random(len(index)) < 0.3, index=index, control="blank_image"),
    ]
    for place, method in enumerate(methods):
        for ratio in ratios:
            level = 0.95 - ratio * (0.6 - 0.1 * place)
            right = rng.random(len(index)) < level
            cells.append(cell(method, right, index=index, ratio=ratio, **columns))
    return framed(cells)


@pytest.fixture
def make_cell() -> SamplesFactory:
    return cell_rows


@pytest.fixture
def make_sweep() -> SamplesFactory:
    return sweep


@pytest.fixture(autouse=True)
def quick(quick_report: None) -> None:
    """See `quick_report`."""


SPOKEN = ("name", "question", "caveat", "told")


def write(samples: pd.DataFrame, folder: Path, meta: Mapping[str, object]) -> dict[str, Path]:
    """All files of a report; what is not spoken in `meta` is provenance."""
    from harness.report import build, files  # late: some who make samples must not draw

    manifest: dict[str, object] = {name: meta[name] for name in SPOKEN if name in meta}
    manifest["provenance"] = {name: meta[name] for name in meta if name not in SPOKEN}
    manifest["plan"] = {"resamples": 199}
    return files.write(build.study(samples, manifest), folder)


@pytest.fixture
def write_report() -> Callable[..., dict[str, Path]]:
    return write
