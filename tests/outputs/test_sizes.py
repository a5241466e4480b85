"""Score against bytes: what is drawn where some cells store what they keep in fewer bits."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness import stats
from harness.report import figures, plots, sizes

META = {"name": "demo"}


@pytest.fixture
def packed(make_sweep, make_cell):
    """Two methods at two ratios, one of them once more in a quarter of the bytes, and all of it."""
    plain = make_sweep(methods=("random", "snapkv"), ratios=(0.5, 0.9))
    few = make_sweep(methods=("snapkv_4bit",), ratios=(0.5, 0.9))
    few = few[few["method"] == "snapkv_4bit"]
    index = plain.loc[plain["method"] == "full", "index"]
    whole = make_cell("full_2bit", [True] * len(index), index=index, ratio=0.0, exposed_tokens=1)
    few["cache_bytes"] //= 4
    whole["cache_bytes"] //= 8
    return pd.concat([plain, few, whole], ignore_index=True)


def test_cells_stand_at_the_bytes_that_are_left(packed):
    rows = sizes.placed(stats.summarise(packed)).set_index(["label", "ratio"])
    kept = {0.0: 101, 0.5: 51, 0.9: 11}
    times = {"random": 1, "snapkv": 1, "snapkv_4bit": 4, "full_2bit": 8}
    assert len(rows) == 7
    for (label, ratio), row in rows.iterrows():
        left = kept[ratio] * 256 // times[label] / (101 * 256)
        assert row["evicted"] == pytest.approx(1 - left)
        assert row["x"] == pytest.approx(-np.log2(left))
    marks = sizes.ticks(rows)
    assert list(marks.values()) == ["100 %", "50 %", "25 %", "12.5 %", "6.25 %", "3.12 %"]
    assert list(marks) == [0, 1, 2, 3, 4, 5]


def test_it_is_drawn_where_bytes_tell_more_than_entries(packed, make_sweep):
    assert sizes.differ(stats.summarise(packed))
    assert not sizes.differ(stats.summarise(make_sweep()))
    means = stats.summarise(packed).drop(columns=["cache_bytes", "full_cache_bytes"])
    assert not sizes.differ(means)  # of several tasks, whose bytes are not of one prompt


@pytest.mark.usefixtures("whole_report")
def test_pictures_and_page_show_it(packed, make_sweep, tmp_path, write_report):
    cells = stats.summarise(packed)
    axis = plots.figure(cells, by_bytes=True).axes[0]
    marks = [line for line in axis.lines if line.get_marker() not in ("None", "")]
    inside = [line for line in marks if line.get_transform() == axis.transData]
    places = {round(float(line.get_xdata()[0]), 6) for line in inside}
    assert places == {round(x, 6) for x in sizes.placed(cells)["x"]}
    assert "bytes that is left, and" in axis.get_xlabel()
    away = plots.figure(cells.assign(host_bytes=1.0), by_bytes=True).axes[0]
    assert "bytes left on the device, compression" in away.get_xlabel()
    found = dict(figures.curves(cells, pd.DataFrame(), by_bytes=True))
    drawn = {line.name: line.x for one in found.values() for line in one.data if line.name}
    assert drawn["full_2bit"] == pytest.approx((3.0,), abs=1e-2)
    paths = write_report(packed, tmp_path, META)
    with Image.open(paths["bytes"]) as picture:
        assert picture.size[0] > 900
    assert "![score against bytes](bytes.png)" in paths["summary"].read_text()
    assert "Score against bytes" in paths["report"].read_text()
    paths = write_report(make_sweep(), tmp_path, META)
    assert "bytes" not in paths
    assert not (tmp_path / "bytes.png").exists()
    assert "Score against bytes" not in paths["report"].read_text()
