"""The rows that are shown: which, and that they say what the samples say."""

import pandas as pd
import pytest

from harness import stats
from harness.report.study import Study
from harness.stats.plan import Plan
from harness.tracking import shown
from tests.outputs.conftest import cell_rows, sweep

EMPTY = pd.DataFrame()


def study_of(samples: pd.DataFrame) -> Study:
    cells = stats.summarise(samples)
    return Study("n", "q", Plan(), samples, cells, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY)


def four(**answers: str) -> pd.DataFrame:
    """Cells "method_ratio" that answer the letters, one a row."""
    frames = []
    for name, letters in answers.items():
        method, _, percent = name.partition("_")
        frame = cell_rows(method, [True] * len(letters), index=range(len(letters)),
                          ratio=int(percent or 0) / 100)  # fmt: skip
        frame["text"] = [f"it is {letter}" for letter in letters]
        frame["parsed"] = [None if letter == "-" else letter for letter in letters]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def test_a_flip_shows_what_everyone_said():
    samples = four(full="AB-D", x_50="AB-D", y_50="AC-D", x_90="BB-D", y_90="AC-A")
    table = shown.flips(study_of(samples))
    assert table.columns.tolist() == [
        *shown.FLIP_COLUMNS, "full cache said", "x said", "y said",
    ]  # fmt: skip
    rows = table[["ratio", "row", "changed", "full cache said", "x said", "y said"]]
    assert rows.to_numpy().tolist() == [
        [0.5, 1, 1, "it is B", "it is B", "it is C"],
        [0.9, 0, 1, "it is A", "it is B", "it is A"],
        [0.9, 1, 1, "it is B", "it is B", "it is C"],
        [0.9, 3, 1, "it is D", "it is D", "it is A"],
    ]
    assert table["answer"].eq("A").all()


def test_unparsed_against_unparsed_is_no_flip_and_against_a_letter_is():
    samples = four(full="--A", x_50="-BA", y_50="--A")
    assert shown.flips(study_of(samples))["row"].tolist() == [1]


def test_flips_count_as_the_flip_rate_does():
    samples = sweep(questions=9)
    study = study_of(samples)
    table = shown.flips(study, changed=10_000)
    rates = study.cells[stats.roles(study.cells).eq("method")]
    for ratio, cells in rates.groupby("ratio"):
        total = table.loc[table["ratio"].eq(ratio), "changed"].sum()
        assert total == pytest.approx((cells["flip_rate"] * cells["n_rows"]).sum())
        assert total > 0


def test_flips_are_bounded_and_spread_at_each_setting():
    samples = four(full="A" * 100, x_50="B" * 100, x_90="A" * 50 + "B" * 50)
    table = shown.flips(study_of(samples), changed=4)
    assert table.groupby("ratio")["row"].agg(list).to_dict() == {
        0.5: [0, 33, 66, 99], 0.9: [50, 66, 83, 99],
    }  # fmt: skip


def test_mild_budgets_come_first():
    index, nan = range(3), float("nan")
    cells = [cell_rows("full", [True] * 3, index=index)]
    for budget in (16, 64):
        cells.append(cell_rows("x", [False] * 3, index=index, ratio=nan, budget=budget))
    table = shown.flips(study_of(pd.concat(cells, ignore_index=True)))
    assert table["budget"].tolist() == [64] * 3 + [16] * 3
    assert table["row"].tolist() == [0, 1, 2] * 2


def test_without_anything_to_compare_there_are_no_flips():
    assert shown.flips(study_of(four(x_50="AB"))).empty
    assert shown.flips(study_of(four(full="--", x_50="AB"))).empty
    assert shown.flips(study_of(four(full="AB"))).empty


def test_samples_without_compressed_cells_show_the_references():
    table = shown.samples(study_of(four(full="AB")))
    assert table[["row", "method"]].to_numpy().tolist() == [[0, "full"], [1, "full"]]
    assert table["kept_fraction"].eq(1).all()


@pytest.mark.parametrize(("questions", "rows"), [(1, [0]), (2, [0, 12]), (3, [0, 6, 12])])
def test_samples_are_first_rotations_spread_evenly(questions, rows):
    samples = sweep(questions=5, rotations=3)
    table = shown.samples(study_of(samples.sample(frac=1, random_state=0)), questions)
    assert table["row"].unique().tolist() == rows


def test_two_variants_of_one_name_are_two_columns():
    samples = four(full="AA", x_50="AB", y_50="BA")
    samples = samples.replace({"method": {"y": "x"}})
    table = shown.flips(study_of(samples))
    said = [column for column in table if column.startswith("x #")]
    assert len(said) == 2
    assert table[said].to_numpy().tolist() == [["it is A", "it is B"], ["it is B", "it is A"]]
