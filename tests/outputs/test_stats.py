"""Statistics against numbers worked out by hand and against simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm, t
from statsmodels.stats.proportion import proportion_confint

from harness import stats

# Two questions of two rotations and one of one: indices 5, 6, 9.
INDEX = [5, 1_000_005, 6, 1_000_006, 9]


def only(cells: pd.DataFrame, method: str, ratio: float = 0.0) -> pd.Series:
    found = cells[(cells["method"] == method) & (cells["ratio"] == ratio)]
    assert len(found) == 1
    return found.iloc[0]


def test_accuracy_circular_and_flips_by_hand(make_cell):
    full = make_cell("full", [1, 1, 1, 0, 1], index=INDEX)
    method = make_cell("snapkv", [1, 1, 0, 0, 0], index=INDEX, ratio=0.5)
    cells = stats.summarise(pd.concat([full, method]))
    assert list(cells.columns) == stats.CELL_COLUMNS
    top, cell = only(cells, "full"), only(cells, "snapkv", 0.5)
    assert (top["n_questions"], top["n_rows"]) == (3, 5)
    assert top["accuracy"] == pytest.approx(4 / 5)
    assert top["circular_accuracy"] == pytest.approx(2 / 3)
    assert top["flip_rate"] == 0
    assert cell["accuracy"] == pytest.approx(2 / 5)
    assert cell["circular_accuracy"] == pytest.approx(1 / 3)
    assert cell["flip_rate"] == pytest.approx(2 / 5)


def test_measures_by_hand(make_cell):
    index = [0, 1]
    cell = make_cell(
        "restkv", [1, 0], index=index, ratio=0.9,
        evictable_tokens=[100, 50], image_tokens=[64, 0], kept_tokens=[10.0, 10.0],
        kept_image=[8.0, 0.0], kept_text=[2.0, 10.0], cache_bytes=[1000, 3000],
        full_cache_bytes=[8000, 4000], exposed_tokens=[0, 3], unparsed=[True, False],
        window_effective=[8, 4], adaptive_active=[0.25, 0.75],
    )  # fmt: skip
    row = stats.summarise(cell).iloc[0]
    assert row["kept_fraction"] == pytest.approx((0.1 + 0.2) / 2)
    assert row["kept_fraction_image"] == pytest.approx(8 / 64)
    assert row["kept_fraction_text"] == pytest.approx((2 / 36 + 10 / 50) / 2)
    assert (row["cache_bytes"], row["full_cache_bytes"]) == (2000, 6000)
    assert (row["exposed_tokens"], row["vacuous"]) == (1.5, False)
    assert (row["unparsed_rate"], row["window_effective"]) == (0.5, 6)
    assert row["adaptive_active"] == 0.5
    assert [row[name] for name in stats.TIMINGS[:4]] == [1.0, 0.5, 0.25, 2.0]
    assert row[["search_s", "computed_share"]].isna().all()
    assert row["prefill"] == "dense"


def test_a_sparse_prefill_by_hand(make_cell):
    shares = ['{"0": 0.5, "2": 0.25}', '{"0": 1.0, "2": 0.75}']
    read = {"prefill": "xattention", "computed_blocks": shares}
    cell = make_cell("restkv", [1, 0], index=[0, 1], **read, search_s=[0.5, 0.25])
    row = stats.summarise(cell).iloc[0]
    assert (row["prefill"], row["computed_share"], row["search_s"]) == ("xattention", 0.625, 0.75)
    assert list(stats.computed(cell)) == [{"0": 0.5, "2": 0.25}, {"0": 1.0, "2": 0.75}]
    assert np.isnan(row["flip_rate"])


def test_only_compressed_cells_are_vacuous(make_sweep):
    cells = stats.summarise(make_sweep(exposed_tokens=0))
    assert cells["vacuous"].tolist() == [False, False] + [True] * 6
    assert not stats.summarise(make_sweep()).vacuous.any()


def test_order_is_full_blank_then_first_appearance(make_sweep):
    samples = make_sweep(methods=("tova", "h2o"), ratios=(0.9, 0.5))
    other = make_sweep(methods=("h2o",), ratios=(0.7,)).assign(task="another")
    back_to_front = pd.concat([samples.iloc[::-1], other])
    cells = stats.summarise(back_to_front)
    got = list(zip(cells["task"], cells["method"], cells["ratio"], strict=True))
    assert got == [
        ("mini", "full", 0.0), ("mini", "blank_image", 0.0),
        ("mini", "h2o", 0.5), ("mini", "h2o", 0.9), ("mini", "tova", 0.5), ("mini", "tova", 0.9),
        ("another", "full", 0.0), ("another", "blank_image", 0.0), ("another", "h2o", 0.7),
    ]  # fmt: skip
    pd.testing.assert_frame_equal(cells, stats.summarise(back_to_front))


def test_question_with_a_missing_rotation_is_not_judged(make_cell):
    full = make_cell("full", [1, 1, 1, 1, 1], index=INDEX)
    part = make_cell("tova", [1, 1, 1, 1, 0], index=INDEX, ratio=0.5)
    cell = only(stats.summarise(pd.concat([full, part[part["row"] != 3]])), "tova", 0.5)
    assert (cell["n_rows"], cell["n_questions"]) == (4, 3)
    assert cell["accuracy"] == pytest.approx(3 / 4)
    assert cell["circular_accuracy"] == pytest.approx(1 / 2)  # question 6 cannot be judged


def test_budget_cells_have_no_ratio(make_cell):
    samples = pd.concat(
        [
            make_cell("full", [1, 1], index=[0, 1]),
            make_cell("snapkv", [1, 0], index=[0, 1], ratio=float("nan"), budget=32),
            make_cell("snapkv", [0, 0], index=[0, 1], ratio=float("nan"), budget=16),
        ]
    )
    cells = stats.summarise(samples)
    assert cells["budget"].tolist() == [pd.NA, 16, 32]
    assert cells["accuracy"].tolist() == [1.0, 0.0, 0.5]


def test_unparsed_rows_flip_only_against_a_letter(make_cell):
    full = make_cell("full", [1, 1, 0, 0], index=range(4), parsed=["A", "B", None, None])
    cell = make_cell("h2o", [1, 0, 0, 0], index=range(4), ratio=0.5, parsed=["A", None, None, "C"])
    cells = stats.summarise(pd.concat([full, cell]))
    assert only(cells, "h2o", 0.5)["flip_rate"] == pytest.approx(2 / 4)


def test_task_without_letters_or_mmbench_fields(make_cell):
    gone = ["index", "question_id", "category", "l2_category"]
    samples = pd.concat(
        [
            make_cell("full", [1, 0, 1], index=[4, 5, 6], parsed=None),
            make_cell("h2o", [1, 0, 0], index=[4, 5, 6], ratio=0.5, parsed=None),
        ]
    ).drop(columns=gone)
    cells = stats.summarise(samples)
    assert cells["n_questions"].tolist() == [3, 3]
    assert cells["circular_accuracy"].tolist() == cells["accuracy"].tolist()
    assert cells["flip_rate"].isna().all()
    assert stats.abilities(samples).columns.tolist() == stats.ABILITY_COLUMNS
    assert stats.abilities(samples).empty


def test_abilities_by_hand(make_cell):
    full = make_cell("full", [1, 1, 1, 0, 1], index=INDEX)
    table = stats.abilities(full)
    assert table.columns.tolist() == stats.ABILITY_COLUMNS
    got = table[["level", "ability", "n_rows", "accuracy"]].to_numpy().tolist()
    assert got == [
        ["category", "counting", 2, 0.5],
        ["category", "ocr", 3, 1.0],
        ["l2_category", "perception", 5, 0.8],
    ]


@pytest.mark.parametrize("change", ["empty", "column", "twice"])
def test_bad_frames_are_refused(make_cell, change):
    samples = make_cell("full", [1, 0], index=[0, 1])
    broken = {
        "empty": samples.iloc[:0],
        "column": samples.drop(columns="parsed"),
        "twice": pd.concat([samples, samples.iloc[:1]]),
    }[change]
    with pytest.raises(
        ValueError, match={"empty": "no rows", "column": "parsed"}.get(change, change)
    ):
        stats.summarise(broken)


def test_interval_against_the_sandwich_written_out():
    right = np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 0], dtype=float)
    question = np.array([3, 3, 3, 8, 8, 1, 1, 1, 1, 4])
    share, clusters = right.mean(), 4
    sums = [((right - share) * (question == q)).sum() for q in np.unique(question)]
    variance = clusters / (clusters - 1) * np.square(sums).sum() / right.size**2
    size = min(share * (1 - share) / variance, right.size)
    size *= (norm.ppf(0.975) / t.ppf(0.975, clusters - 1)) ** 2
    z = norm.ppf(0.975)
    middle = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    got = stats.accuracy_interval(pd.Series(right), pd.Series(question))
    assert got == pytest.approx((middle - half, middle + half))


@pytest.mark.parametrize("value", [0, 1])
def test_interval_at_the_ends_counts_questions(value):
    right, question = pd.Series([value] * 40), pd.Series(np.repeat(np.arange(10), 4))
    low, high = stats.accuracy_interval(right, question)
    assert (low, high) == pytest.approx(proportion_confint(10 * value, 10, method="wilson"))
    assert low <= value <= high
    assert 0.2 < high - low < 0.4


def test_interval_of_nothing_and_of_one_question():
    assert np.isnan(stats.accuracy_interval(pd.Series([], dtype=bool), pd.Series([]))).all()
    low, high = stats.accuracy_interval(pd.Series([1, 0]), pd.Series([7, 7]))
    assert 0 < low < 0.1 < 0.9 < high < 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40))
def test_interval_holds_the_mean_and_is_symmetric(rows):
    right = pd.Series([value for value, _ in rows])
    question = pd.Series([group for _, group in rows])
    low, high = stats.accuracy_interval(right, question)
    assert 0 <= low <= right.mean() <= high <= 1
    assert stats.accuracy_interval(~right, question) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("share", "together"), [(0.9, 0.3), (0.97, 0.0), (0.6, 1.0)])
def test_interval_covers_the_truth(share, together):
    """Questions of 2-4 rows; a share `together` of the questions answers all its rows alike."""
    rng, runs, questions = np.random.default_rng(1), 300, 60
    hits = 0
    for _ in range(runs):
        sizes = rng.integers(2, 5, questions)
        question = np.repeat(np.arange(questions), sizes)
        joint = (rng.random(questions) < together)[question]
        alike = (rng.random(questions) < share)[question]
        right = np.where(joint, alike, rng.random(question.size) < share)
        low, high = stats.accuracy_interval(pd.Series(right), pd.Series(question))
        hits += low <= share <= high
    # 3 standard errors below 95 % over 300 runs; too wide would be as wrong as too narrow.
    assert binom.ppf(0.001, runs, 0.95) <= hits <= runs - 1
