"""How far option logits are from the full cache's: the Kullback-Leibler divergence.

Knows columns of JSON texts; must not know cells or frames of samples.
"""

import json
from collections import defaultdict

import numpy as np
import pandas as pd
from scipy.special import log_softmax

CHUNK = 50_000  # texts parsed by one call; a call a text costs more than its few numbers


def option_logs(texts: pd.Series) -> np.ndarray:
    """Log-probabilities of every row's options among themselves.

    Args:
        texts: [rows], each a JSON object from letter to logit (null: no number), or null.

    Returns:
        float64 [rows, letters], a column for each letter that is an option anywhere: -inf where it
        is none of the row's; nan in rows of fewer than two options and in rows with a logit that is
        no finite number.
    """
    rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
    logits: dict[tuple[str, ...], list[list[float]]] = defaultdict(list)
    written = texts.fillna("{}").tolist()
    for start in range(0, len(written), CHUNK):
        chunk = json.loads(f"[{','.join(written[start : start + CHUNK])}]")
        for row, options in enumerate(chunk, start):
            letters = tuple(options)
            rows[letters].append(row)
            logits[letters].append(list(options.values()))
    column = {letter: place for place, letter in enumerate(sorted(set().union(*rows)))}
    logs = np.full((len(written), len(column)), np.nan)
    for letters, where in rows.items():
        if len(letters) < 2:
            continue
        values = np.array(logits[letters], dtype=float)
        sound = np.isfinite(values).all(axis=1, keepdims=True)
        block = np.full((len(where), len(column)), -np.inf)
        block[:, [column[letter] for letter in letters]] = log_softmax(
            np.where(sound, values, 0.0), axis=1
        )
        logs[where] = np.where(sound, block, np.nan)
    return logs


def divergences(full: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """KL(full || cell) of each row, in nats.

    Args:
        full, cell: [rows, letters], rows of `option_logs`.

    Returns:
        float64 [rows], never negative; nan where either is nan or their options differ.
    """
    offered = np.isfinite(full)
    same = (offered == np.isfinite(cell)).all(axis=1) & offered.any(axis=1)
    both = offered & same[:, None]
    gaps = np.subtract(full, cell, out=np.zeros(full.shape), where=both)
    shares = np.exp(full, out=np.zeros(full.shape), where=both)
    return np.where(same, np.maximum((shares * gaps).sum(axis=1), 0.0), np.nan)
