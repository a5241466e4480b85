"""The needle heatmap against a grid made by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from harness.report import heatmap

SCORES = {(1024, 0): 1.0, (1024, 50): 0.5, (1024, 100): 0.0, (8192, 0): 0.25, (8192, 100): 0.75}


def cell(method: str, ratio: float, scale: float = 1.0, control: str = "none") -> pd.DataFrame:
    """Two rows a place, whose mean is the place's score; the last place of the grid is missing."""
    rows = [
        {"category": str(length), "l2_category": str(float(depth)), "score": scale * score + change}
        for (length, depth), score in SCORES.items()
        for change in (-0.125, 0.125)
    ]
    frame = pd.DataFrame(rows).sample(frac=1, random_state=1)
    return frame.assign(method=method, ratio=ratio, budget=pd.NA, control=control)


def samples() -> pd.DataFrame:
    parts = [
        cell("snapkv", 0.9, 0.5),
        cell("full", 0.0),
        cell("full", 0.0, control="blank_image"),
        cell("snapkv", 0.5),
        cell("restkv", 0.9),
    ]
    return pd.concat(parts, ignore_index=True).astype({"budget": "Int64"})


def test_grid_has_a_row_a_depth_and_a_column_a_length() -> None:
    found = heatmap.grid(cell("snapkv", 0.9))
    assert list(found.index) == [0, 50, 100]
    assert list(found.columns) == [1024, 8192]
    np.testing.assert_allclose(found, [[1, 0.25], [0.5, np.nan], [0, 0.75]])


def test_correct_stands_in_for_score() -> None:
    frame = cell("snapkv", 0.9).drop(columns="score").assign(correct=True)
    assert heatmap.grid(frame).loc[50, 1024] == 1


def test_a_panel_a_cell_with_its_values() -> None:
    picture = heatmap.figure(samples(), title="model on needle")
    panels = {axis.get_title(): axis for axis in picture.axes if axis.get_title()}
    assert list(panels) == [
        "full cache: mean 0.50",
        "snapkv, ratio 0.5: mean 0.50",
        "snapkv, ratio 0.9: mean 0.25",
        "restkv, ratio 0.9: mean 0.50",
    ]
    shown = panels["snapkv, ratio 0.9: mean 0.25"].get_images()[0]
    drawn = np.ma.filled(shown.get_array(), np.nan)
    np.testing.assert_allclose(drawn, [[0.5, 0.125], [0.25, np.nan], [0, 0.375]])
    assert shown.get_clim() == (0, 1)
    axis = panels["restkv, ratio 0.9: mean 0.50"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1024", "8192"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0", "50", "100"]
    bottom, top = axis.get_ylim()
    assert bottom > top  # the beginning of the text is above its end
    assert picture.get_suptitle() == "model on needle"
    labels = [axis.get_ylabel() for axis in picture.axes]
    assert "score" in labels


def test_colours_go_from_red_over_yellow_to_green() -> None:
    low, middle, high = (np.array(heatmap.COLOURS(value)[:3]) for value in (0.0, 0.5, 1.0))
    assert low.argmax() == 0
    assert low[1] < 0.5
    assert middle[:2].min() > 0.7 > middle[2]
    assert high.argmax() == 1


def test_budgets_name_their_panels() -> None:
    frame = cell("snapkv", np.nan).assign(budget=64).astype({"budget": "Int64"})
    titles = [axis.get_title() for axis in heatmap.figure(frame).axes]
    assert titles[0] == "snapkv, n=64: mean 0.50"


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    heatmap.heatmap(samples(), tmp_path / "a.png")
    heatmap.heatmap(samples(), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    for score in (1.0, 0.5, 0.0):
        wanted = np.array(heatmap.COLOURS(score)[:3]) * 255
        assert np.abs(picture - wanted).max(axis=-1).min() < 3
