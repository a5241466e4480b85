"""The needle picture: score by context length and depth, a panel a method and ratio.

Draws rows of the samples table and knows nothing of the run. Looks as the published pictures do:
length to the right, depth downwards, red for 0 over yellow to green for 1.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from harness import stats
from harness.report import tables

COLOURS = LinearSegmentedColormap.from_list(
    "needle",
    ["#e5484d", "#f5d04c", "#2fa866"],
    bad="#e6e6e6",  # grey: nothing was asked there, or no score is known
)


def heatmap(
    samples: pd.DataFrame, path: Path, length: str = "context length", title: str = ""
) -> None:
    """Write the `figure` of the samples to `path` as PNG, the same bytes for the same samples."""
    figure(samples, length, title).savefig(path, format="png", metadata={"Software": None})


def figure(samples: pd.DataFrame, length: str = "context length", title: str = "") -> Figure:
    """A row of panels a method, a panel a ratio or budget, the full cache first.

    Args:
        samples: one model and protocol, any number of lengths; columns method, ratio, budget,
            control, category (length), l2_category (depth in percent) and score (0 to 1) or, where
            that is missing, correct.
        length: name of the horizontal axis; tokens, or images for the visual needle.
        title: above all panels.
    """
    rows = list(_rows(samples))
    wide = max(len(cells) for _, cells in rows)
    lengths, depths = (sorted(pd.to_numeric(samples[c]).unique()) for c in AXES)
    width, height = 1.2 + 0.42 * len(lengths), 1.1 + 0.2 * len(depths)
    size = (max(3.4, width) * wide + 1.4, max(2.4, height) * len(rows) + (0.5 if title else 0.2))
    picture = Figure(figsize=size, dpi=150, layout="constrained")
    axes = picture.subplots(len(rows), wide, squeeze=False, sharex=True, sharey=True)
    for (method, cells), line in zip(rows, axes, strict=True):
        for axis in line[len(cells) :]:
            axis.set_visible(False)
        for (setting, cell), axis in zip(cells, line, strict=False):
            image = _panel(axis, grid(cell).reindex(index=depths, columns=lengths))
            name = f"{method}, {setting}" if setting else "full cache"
            axis.set_title(f"{name}: mean {_mean(cell)}", fontsize=9, parse_math=False)
        line[0].set_ylabel("depth (%)")
    for column in axes.T:
        lowest = [axis for axis in column if axis.get_visible()][-1]
        lowest.set_xlabel(length)
        lowest.tick_params(labelbottom=True)
    picture.colorbar(image, ax=axes, label="score", aspect=18 * len(rows))
    if title:
        picture.suptitle(title, fontsize=11, parse_math=False)
    return picture


AXES = ("category", "l2_category")


def grid(samples: pd.DataFrame) -> pd.DataFrame:
    """Mean score of one cell, a row a depth and a column a length, both ascending."""
    length, depth = (pd.to_numeric(samples[column]) for column in AXES)
    places = _score(samples).groupby([depth, length])
    return places.agg(_known_mean).unstack().sort_index(axis=0)


def _score(samples: pd.DataFrame) -> pd.Series:
    return samples["score" if "score" in samples else "correct"].astype(float)


def _mean(samples: pd.DataFrame) -> str:
    mean = _known_mean(_score(samples))
    return "-" if np.isnan(mean) else f"{mean:.2f}"


def _known_mean(scores: pd.Series) -> float:
    """The mean score, nan where one of them is not known."""
    return float(scores.mean(skipna=False))


def _rows(samples: pd.DataFrame) -> Iterator[tuple[str, list[tuple[str, pd.DataFrame]]]]:
    """Methods in order of appearance, the full cache first, with their cells by setting."""
    role = stats.roles(samples)
    if role.eq("full").any():
        yield "full", [("", samples[role.eq("full")])]
    shown = samples[role.eq("method")]
    shown = shown.assign(setting=[tables.setting(cell) for _, cell in shown.iterrows()])
    for method, rows in shown.groupby("method", sort=False):
        order = rows.sort_values(["ratio", "budget"], kind="stable", na_position="last")
        cells = list(order.groupby("setting", sort=False))
        yield str(method), [(_words(str(name)), cell) for name, cell in cells]


def _words(setting: str) -> str:
    return setting if setting.startswith("n=") else f"ratio {setting}"


def _panel(axis: Axes, values: pd.DataFrame) -> AxesImage:
    image = axis.imshow(values, cmap=COLOURS, vmin=0, vmax=1, aspect="auto", origin="upper")
    axis.set_xticks(range(len(values.columns)), [f"{v:g}" for v in values.columns], fontsize=7)
    axis.set_yticks(range(len(values.index)), [f"{v:g}" for v in values.index], fontsize=7)
    axis.tick_params(axis="x", rotation=45)
    axis.set_xticks(np.arange(len(values.columns) - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(len(values.index) - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="white", lw=0.8)
    axis.tick_params(which="minor", length=0)
    return image
