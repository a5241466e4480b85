"""Cells by the bytes of their caches, where some store what they keep in fewer bits.

Knows the cells table; must not know how a picture is drawn.
"""

import numpy as np
import pandas as pd

from harness.report import tables

LESS = 0.02  # of the bytes: what a cell must save beyond its entries to count as stored in few bits
TITLE = "share of the KV cache's bytes {}compression factor (log scale)"


def differ(cells: pd.DataFrame) -> bool:
    """Whether some of the cells take fewer bytes than their entries would in full precision."""
    rows = tables.compressed(cells)
    known = {"cache_bytes", "full_cache_bytes"} <= set(rows.columns)
    return known and bool((_share(rows) < rows["kept_fraction"] - LESS).any())


def on_host(cells: pd.DataFrame) -> bool:
    """Whether some of the cells have entries on the host, which their bytes leave out."""
    return "host_bytes" in cells and bool(cells["host_bytes"].notna().any())


def title(rows: pd.DataFrame) -> str:
    """What the axis shows."""
    return TITLE.format("left on the device, " if on_host(rows) else "that is left, and ")


def placed(cells: pd.DataFrame) -> pd.DataFrame:
    """The compressed cells with `evicted`, the share of the full cache's bytes that is saved, and
    `x`, log2 of the compression factor.
    """
    rows = tables.compressed(cells)
    left = _share(rows).clip(lower=0.001, upper=1)
    return rows.assign(evicted=1 - left, x=-np.log2(left))


def ticks(rows: pd.DataFrame) -> dict[float, str]:
    """Places on the axis and their labels: halvings of the whole cache, as far as cells go."""
    last = int(rows["x"].max()) if len(rows) else 0
    return {float(n): f"{100 / 2**n:.3g} %" for n in range(last + 1)}


def _share(rows: pd.DataFrame) -> pd.Series:
    return (rows["cache_bytes"] / rows["full_cache_bytes"]).astype(float)
