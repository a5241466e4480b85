"""Curves: what is drawn for every shape of table."""

import pandas as pd
import pytest
from PIL import Image

from harness import stats
from harness.report import plots, tables

pytestmark = pytest.mark.usefixtures("whole_report")
META = {
    "name": "demo", "command": "make sweep 'ratios=[0.5,0.9]'", "seed": 7,
    "versions": {"torch": "9.9.9"}, "caveat": "The model is a stand-in.",
}  # fmt: skip
HOSTILE = "a|b <script>alert(1)</script>\n![x](http://e.vil) `c` **d** [l](u) $x$ \x1b[31m"


def test_cells_in_one_place_stay_apart(make_sweep):
    one = make_sweep(methods=("random",), ratios=(0.5,))
    again = one[one["method"] == "random"].assign(cell_key="f00dfeed", correct=False)
    labels = tables.compressed(stats.summarise(pd.concat([one, again])))["label"]
    assert sorted(labels) == ["random #f00dfe", "random #random"]


@pytest.mark.parametrize("case", ["sweep", "vacuous", "one", "budget", "references", "hostile"])
def test_curve_draws_every_shape_of_table(make_sweep, make_cell, tmp_path, case):
    variants = ("random", "snapkv", "restkv", "restkv_mean", "restkv_none")
    samples = {
        "sweep": lambda: make_sweep(methods=variants, ratios=(0.0, 0.5, 0.7, 0.8, 0.9, 0.95)),
        "vacuous": lambda: make_sweep(exposed_tokens=0),
        "one": lambda: make_cell("snapkv", [1, 0, 1], index=range(3), ratio=0.9),
        "budget": lambda: pd.concat(
            make_cell("h2o", [1, 0], index=range(2), ratio=float("nan"), budget=n)
            for n in (8, 16, 64)
        ),
        "references": lambda: make_sweep(methods=()),
        "hostile": lambda: make_sweep(methods=("$\\frac{", "a_b^{")).assign(model="$$_{"),
    }[case]()
    plots.curve(stats.summarise(samples), tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        width, height = picture.size
        assert 900 < width < 2100
        assert 600 < height < 1000
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    drawn = tuple(int(plots.COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    assert (drawn in colours) == (case != "references")


def test_vacuous_cells_are_hollow_and_lines_are_named(make_sweep):
    samples = make_sweep(questions=40)
    empty = samples["method"].eq("snapkv") & samples["ratio"].eq(0.5)
    samples.loc[empty, "exposed_tokens"] = 0
    cells = stats.summarise(samples)
    axis = plots.figure(cells).axes[0]
    marks = [line for line in axis.lines if line.get_marker() not in ("None", "")]
    inside = [line for line in marks if line.get_transform() == axis.transData]
    assert len(inside) == 6
    heights = {round(float(line.get_ydata()[0]), 6) for line in inside}
    assert heights == {round(100 * a, 6) for a in tables.compressed(cells)["accuracy"]}
    hollow = [line for line in inside if line.get_markerfacecolor() == "white"]
    want = cells.loc[cells["vacuous"], "accuracy"].item()
    assert [float(line.get_ydata()[0]) for line in hollow] == pytest.approx([100 * want])
    assert len(marks) - len(inside) == 3  # one beside each name
    names = {text.get_text() for text in axis.texts}
    assert names == {"full cache", "blank image", "random", "snapkv", "restkv"}


def test_names_are_spread_as_little_as_possible():
    assert plots.spread([0.0, 10.0, 20.0], 5) == [0, 10, 20]
    assert plots.spread([10.0, 10.0, 10.0], 4) == [6, 10, 14]
    assert plots.spread([0.0, 1.0, 5.0], 4) == pytest.approx([-2, 2, 6])
