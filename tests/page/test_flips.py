"""Which changed answers are shown, and who is said to have said what."""

import pandas as pd

from harness.report.flips import flips
from tests.outputs.conftest import cell_rows


def answers(method, parsed, text=None, **columns):
    rows = cell_rows(method, [True] * len(parsed), index=range(len(parsed)), **columns)
    return rows.assign(parsed=parsed, text=parsed if text is None else text)


def labels(*methods):
    return {f"{method}-0.9-None-none": method for method in methods}


def test_methods_take_turns():
    count = 60
    samples = pd.concat([
        answers("full", ["A"] * count),
        answers("all", ["B"] * count, ratio=0.9),
        answers("late", ["A"] * 50 + ["C"] * 10, ratio=0.9),
        answers("two", ["A"] * 30 + ["D"] * 2 + ["A"] * 28, ratio=0.9),
    ])  # fmt: skip
    found = flips(samples, labels("all", "late", "two"))
    # in turn 0, 50, 30; 1, 51, 31; then all and late alone, 7 rows each
    assert [flip.row for flip in found] == [*range(9), 30, 31, *range(50, 59)]
    assert len(flips(samples, labels("all", "late", "two"), most=3)) == 3


def test_answers_are_grouped_and_changed_ones_come_first():
    samples = pd.concat([
        answers("full", ["A", "A", None], ["A", "A.", "what?"]),
        answers("one", ["A", "B", None], ["A", "it is B", "eh"], ratio=0.9),
        answers("two", ["A", "A", "C"], ["A", "A.", "C"], ratio=0.9),
        answers("three", ["A", "B", None], ["A", "it is B", "what?"], ratio=0.9),
        answers("other", ["D", "D", "D"], ratio=0.5),
    ])  # fmt: skip
    second, third = flips(samples, labels("one", "two", "three"))
    assert (second.row, second.answer, second.full, second.question) == (1, "A", "A.", "How many?")
    assert [(s.text, s.read, s.methods, s.changed) for s in second.said] == [
        ("it is B", "B", ("one", "three"), True), ("A.", "A", ("two",), False),
    ]  # fmt: skip
    assert [(s.text, s.read, s.methods, s.changed) for s in third.said] == [
        ("C", "C", ("two",), True), ("eh", "", ("one",), False), ("what?", "", ("three",), False),
    ]  # fmt: skip


def test_nothing_to_compare_with():
    method = answers("one", ["B", "A"], ratio=0.9)
    assert flips(method, labels("one")) == []
    full = answers("full", ["A", "A"])
    assert flips(full, {}) == []
    both = pd.concat([full, method])
    assert [flip.row for flip in flips(both, labels("one"))] == [0]
    assert flips(both.drop(columns="question"), labels("one")) == []
    assert flips(pd.concat([full.query("row == 1"), method]), labels("one")) == []
