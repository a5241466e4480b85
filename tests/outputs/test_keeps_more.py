"""A cell that keeps more than was asked is neither best nor what others are compared with."""

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from harness import stats
from harness.report import build, field, glance, summary
from tests.outputs.conftest import cell_rows

SLIPS = {"greedy": 0, "tova": 1, "near": 2, "far": 20}  # of 40 rows
PLACES = (0.5, 0.8, 0.9)
FILLERS = ("h2o", "snapkv", "cake", "knorm")


def run(make_cell, slips, kept=None, places=PLACES):
    """Each method with its wrong rows at every place; kept: tokens of 101 by (method, ratio)."""
    rows = range(40)
    parts = [make_cell("full", [True] * 40, index=rows)]
    for name, wrong in slips.items():
        for ratio in places:
            tokens = (kept or {}).get((name, ratio))
            more = {} if tokens is None else {"kept_tokens": float(tokens)}
            right = [row >= wrong for row in rows]
            parts.append(make_cell(name, right, index=rows, ratio=ratio, **more))
    return build.study(pd.concat(parts, ignore_index=True), {"plan": {"resamples": 99}})


def at_a_glance(study):
    (found,) = glance.glances(study)
    return found, {line[0]: line for line in glance.rows(found).body}


def reading(study):
    """The sentence about the setting in focus."""
    text = summary.text(study.samples, study.cells, study.abilities, {}, ["c.png"])
    return next(line for line in text.splitlines() if line.startswith("At 0.9: "))


@pytest.fixture(scope="module")
def text_is_kept():
    """Of one method all text stays: 40 of 101 tokens, which is more than .8 and .9 ask for."""
    kept = {("greedy", 0.8): 40, ("greedy", 0.9): 40}
    return run(cell_rows, SLIPS | dict.fromkeys(FILLERS, 30), kept)


def test_it_is_not_best_and_makes_no_other_worse(text_is_kept, make_cell):
    found, lines = at_a_glance(text_is_kept)
    alone = {name: slips for name, slips in SLIPS.items() if name != "greedy"}
    without, same = at_a_glance(run(make_cell, alone | dict.fromkeys(FILLERS, 30)))
    wanted = {"greedy": "+", "tova": "best", "near": "=", "far": ""}
    assert {name: lines[name][2] for name in SLIPS} == wanted
    assert {name: same[name][2] for name in alone} == {name: wanted[name] for name in alone}
    columns = ["mean", "difference", "difference_low", "difference_high", "told_apart"]
    pd.testing.assert_frame_equal(
        found.standing.drop(index="greedy")[columns], without.standing[columns]
    )
    assert not found.standing["told_apart"]["greedy"]
    said = reading(text_is_kept)
    assert said.startswith("At 0.9: best tova 97.5 % ")
    assert "greedy" not in said


def test_its_cells_are_marked_and_the_note_says_what_they_are(text_is_kept, make_cell):
    found, lines = at_a_glance(text_is_kept)
    assert lines["greedy"][3:6] == ["100.0", "100.0+", "100.0+"]
    assert lines["tova"][3:6] == ["97.5"] * 3
    notes = [note for note in glance.rows(found).notes if note.startswith("+ ")]
    assert notes == [
        "+ = keeps more of the cache than was asked: neither best nor compared with the best."
    ]
    picture = field.figure(found)
    FigureCanvasAgg(picture)
    texts = [text.get_text() for text in picture.axes[0].texts]
    assert texts.count("100.0+") == 2
    assert any(text.startswith("100.0 [") and text.endswith("  +") for text in texts)
    assert any("+ = keeps more" in text for text in texts)
    usual, _ = at_a_glance(run(make_cell, SLIPS))
    assert not [note for note in glance.rows(usual).notes if note.startswith("+ ")]


def test_where_it_does_not_count_for_the_mean_the_method_is_compared(make_cell):
    _, lines = at_a_glance(run(make_cell, SLIPS, {("greedy", 0.5): 70}))
    assert lines["greedy"][2:6] == ["best", "100.0+", "100.0", "100.0"]


def test_two_methods_of_which_one_keeps_more_have_no_best(make_cell):
    study = run(make_cell, {"greedy": 0, "tova": 9}, {("greedy", 0.9): 40})
    _, lines = at_a_glance(study)
    assert {name: lines[name][2] for name in ("greedy", "tova")} == {"greedy": "+", "tova": ""}
    assert reading(study).startswith("At 0.9: tova 77.5 % ")


@pytest.mark.parametrize(
    ("kept", "more"),
    [
        ({"a": 11, "b": 11}, []),
        ({"a": 11, "b": 12}, []),  # 11.9 %, within a point of the 10.9 % that all keep
        ({"a": 11, "b": 13}, ["b"]),
        ({"a": 5, "b": 11}, []),  # who keeps less makes nobody keep more than the 10 % asked for
        ({"a": 20, "b": 20}, []),  # what rounding leaves to all
        ({"a": 20, "b": 22}, ["b"]),
    ],
)
def test_more_is_a_point_beyond_what_was_asked_and_beyond_what_all_keep(make_cell, kept, more):
    places = {(name, 0.9): tokens for name, tokens in kept.items()}
    cells = run(make_cell, dict.fromkeys(kept, 3), places, (0.9,)).cells
    own = cells[stats.roles(cells).eq("method")]
    assert own.loc[stats.keeps_more(own), "method"].tolist() == more


def test_of_absolute_budgets_the_least_is_what_was_asked(make_cell):
    parts = [
        make_cell(name, [True], index=[0], ratio=float("nan"), budget=n, kept_tokens=float(tokens))
        for name, n, tokens in (("a", 8, 8), ("b", 8, 9), ("c", 8, 10), ("a", 32, 32))
    ]
    cells = stats.summarise(pd.concat(parts, ignore_index=True))
    assert cells.loc[stats.keeps_more(cells), "method"].tolist() == ["c"]
