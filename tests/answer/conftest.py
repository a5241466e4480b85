"""Samples with a known truth: how often each cell loses or gains an answer is chosen, not drawn."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.outputs.conftest import cell, framed

QUESTIONS, ROTATIONS = 300, 2


def rows(right: np.ndarray, method: str, ratio: float = 0.0, **columns: Any) -> pd.DataFrame:
    """One cell of `QUESTIONS` questions, every rotation alike."""
    return framed([turned(right, method, ratio, **columns)])


def turned(
    right: np.ndarray, method: str, ratio: float = 0.0, **columns: Any
) -> dict[str, list[Any]]:
    index = [k * 1_000_000 + 7 + q for q in range(len(right)) for k in range(ROTATIONS)]
    return cell(method, np.repeat(right, ROTATIONS), index=index, ratio=ratio, **columns)


def losing(count: int, questions: int = QUESTIONS) -> np.ndarray:
    """Right answers of a cell that loses `count` of the questions that the full cache has."""
    right = full(questions)
    right[np.flatnonzero(right)[:count]] = False
    return right


def full(questions: int = QUESTIONS) -> np.ndarray:
    """Nine tenths of the questions."""
    return np.arange(questions) % 10 != 9


def study_samples(
    lost: Mapping[tuple[str, float], int], questions: int = QUESTIONS, **columns: Any
) -> pd.DataFrame:
    """The full cache, a blank image right in a quarter, and cells that lose what they are told."""
    cells = [
        turned(full(questions), "full"),
        turned(np.arange(questions) % 4 == 0, "blank_image", control="blank_image"),
    ]
    cells += [
        turned(losing(count, questions), method, ratio, **columns)
        for (method, ratio), count in lost.items()
    ]
    return framed(cells)


@pytest.fixture(autouse=True)
def quick(own_claims: None) -> None:
    """See `own_claims`."""


@pytest.fixture
def make_study_samples() -> Callable[..., pd.DataFrame]:
    return study_samples
