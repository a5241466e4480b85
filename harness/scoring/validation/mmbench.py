"""Which rows of MMBench's schema can be scored, and its empty fields made empty.

A question is the group of rows with one index modulo 1,000,000, its rotations; lmms-eval counts it
by the row whose index is below 1,000,000. Knows the schema; must not know models or readings.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from datasets import Image as Picture

from harness.scoring.validation import pictures, tables
from harness.scoring.validation.faults import Asked, Fault, shown, without_id
from harness.scoring.validation.tables import UNREADABLE, blank, missing_word, nothing

ROTATION = 1_000_000
READ = "ABCD"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What no XML holds, and so no spreadsheet: lmms-eval writes one of every run.
UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
WRITTEN = ("source", "split")  # besides
NEEDED = ("index", "question", *READ, "category")
EMPTIED = ("hint", "answer", "category", "L2-category", "l2-category")  # besides the options


@dataclass
class _Row:
    """A row as it is judged; options hold None where there is none, by letter."""

    number: int
    index: Any
    question: Any
    answer: str | None
    options: dict[str, Any]
    why: tuple[str, str] | None = None  # column and reason

    def fault(self, column: str, why: str) -> None:
        """Keep the first thing that is wrong."""
        self.why = self.why or (column, why)

    @property
    def held(self) -> dict[str, str]:
        """The options that are there."""
        return {letter: text for letter, text in self.options.items() if text is not None}

    @property
    def right(self) -> str | None:
        """The text of the right option."""
        return self.held.get(self.answer or "")


@dataclass(frozen=True)
class Examined:
    """The data set with empty fields made empty, the question and the index of each row, and what
    is wrong.
    """

    dataset: Dataset
    ids: list[int]
    indexes: list[Any]
    faults: list[Fault] = field(default_factory=list)


def examine(asked: Asked, task: Any, dataset: Dataset) -> Examined:
    """Look at every row of a split.

    Raises:
        UserError: a column is missing or of another type.
    """
    functions = [task.doc_to_text, lambda document: task.config.process_results(document, [""])]
    functions += [task.doc_to_visual] if task.config.doc_to_visual else []
    tables.require(asked, dataset, [*NEEDED, *tables.lacking(functions, dataset)])
    options = [letter for letter in LETTERS if letter in dataset.column_names]
    tables.require_kind(asked, dataset, "index", "number")
    for name in ("question", "answer", "hint", *options):
        tables.require_kind(asked, dataset, name, "text")
    dataset = _with_images(asked, dataset)
    names = ["index", "question", *EMPTIED, *WRITTEN, *options]
    given = tables.columns(dataset, names)
    rows = _rows(given, options)
    ids = [row.index % ROTATION if _counts(row.index) else without_id(row.number) for row in rows]
    _judge(rows, ids, {fault.row: fault for fault in pictures.heads(dataset, required=True)})
    found = [Fault(row.number, *row.why) for row in rows if row.why is not None]
    return Examined(_emptied(dataset, given, rows), ids, given["index"], found)


def _with_images(asked: Asked, dataset: Dataset) -> Dataset:
    """The data set with its image column as images; other writers store their bytes as they are."""
    feature = dataset.features.get("image")
    if feature is None or isinstance(feature, Picture):
        return dataset
    kind = getattr(feature, "dtype", "fields")
    if kind == "binary" or (isinstance(feature, dict) and "bytes" in feature):
        return dataset.cast_column("image", Picture())
    raise asked.error(
        f"column image of its data holds {kind}; store images there, as datasets.Image() does"
    )


def _rows(given: Mapping[str, list[Any]], options: Sequence[str]) -> list[_Row]:
    answers = given.get("answer") or [None] * len(given["index"])
    rows = [
        _Row(
            number,
            index,
            given["question"][number],
            None if nothing(answers[number]) else answers[number],
            {
                letter: None if blank(given[letter][number]) else given[letter][number]
                for letter in options
            },
        )
        for number, index in enumerate(given["index"])
    ]
    for name, column in given.items():
        for row, value in zip(rows, column, strict=True):
            if value is UNREADABLE:
                row.fault(name, "its text is no UTF-8")
            elif isinstance(value, str) and (found := UNWRITABLE.search(value)):
                row.fault(name, f"it has {found[0]!r}, which no spreadsheet can hold")
    return rows


def _counts(index: Any) -> bool:
    return isinstance(index, int) and index >= 0


def _judge(rows: Sequence[_Row], ids: Sequence[int], images: Mapping[int, Fault]) -> None:
    """Say of every row the first thing that is wrong with it."""
    questions: dict[int, list[_Row]] = defaultdict(list)
    for row, question in zip(rows, ids, strict=True):
        questions[question].append(row)
    for group in questions.values():
        _drop_missing(group)
    some = any(row.answer is not None for row in rows)
    for row in rows:
        _judge_row(row, some)
        if row.number in images:
            row.fault(str(images[row.number].column), images[row.number].why)
    for question, group in questions.items():
        if question >= 0:
            _judge_question(question, group)


def _drop_missing(group: Sequence[_Row]) -> None:
    """Take out options that are words for nothing: they stay in place while the others rotate.

    A word that moves, or is right, is an option; "nan" as an option cannot be asked, for lmms-eval
    leaves it out of its prompt.
    """
    absent = [{k for k, text in row.options.items() if nothing(text)} for row in group]
    words = [{k for k in row.options if missing_word(row.options[k])} for row in group]
    if not any(words):
        return
    behind = all(_last(row, gone) for row, gone in zip(group, absent, strict=True))
    still = all(gone == absent[0] for gone in absent)
    right = any(row.answer in gone for row, gone in zip(group, words, strict=True))
    if still and behind and not right:
        for row, gone in zip(group, words, strict=True):
            for letter in sorted(gone):
                if len(group) == 1 and not _nan(row.options[letter]):
                    row.fault(letter, _doubtful(row.options[letter]))
                row.options[letter] = None
        return
    for row, gone in zip(group, words, strict=True):
        for letter in sorted(gone):
            if _nan(row.options[letter]):
                row.fault(letter, _doubtful(row.options[letter]))


def _last(row: _Row, gone: set[str]) -> bool:
    """Whether what is absent stands behind all that is there."""
    there = [letter for letter in row.options if letter not in gone]
    return not there or all(letter > max(there) for letter in gone)


def _nan(text: Any) -> bool:
    return isinstance(text, str) and text.strip().casefold() == "nan"


def _doubtful(text: Any) -> str:
    return (
        f"it cannot be told whether {shown(text)} is an option or stands for a missing one; leave "
        "the field empty, or word the option otherwise"
    )


def _judge_row(row: _Row, answered: bool) -> None:
    """answered: whether any row of the data set tells its answer."""
    if not _counts(row.index):
        row.fault("index", f"{_or_nothing(row.index)} is no whole number from 0")
    if blank(row.question):
        row.fault("question", "it is empty")
    letters = "".join(row.held)
    for letter in letters:
        if letter not in READ:
            row.fault(letter, f"it holds an option, and the options that are read are {READ}")
    if len(letters) < 2:
        row.fault("B", f"the row has {len(letters) or 'no'} option, and a choice needs two")
    gap = next((k for k in READ if k not in letters and k < letters[-1:]), None)
    if gap:
        row.fault(gap, f"it is empty, and option {letters[-1]} behind it is not")
    if answered and row.why is None:
        _judge_answer(row)


def _judge_answer(row: _Row) -> None:
    if row.answer is None:
        row.fault("answer", "it is empty, and other rows have an answer")
        return
    if row.right is None:
        options = ", ".join(row.held) or "none"
        row.fault("answer", f"{shown(row.answer)} is not among its options ({options})")
        return
    same = [k for k, text in row.held.items() if text.strip() == row.right.strip()]
    if len(same) > 1:
        row.fault(same[1], f"it says {shown(row.right)}, as the right option {row.answer} does")


def _judge_question(question: int, group: Sequence[_Row]) -> None:
    """What only the rotations together tell."""
    seen: dict[int, _Row] = {}
    for row in group:
        if row.index in seen:
            row.fault("index", f"row {seen[row.index].number} has the same")
        seen.setdefault(row.index, row)
    main = seen.get(question)
    if main is None:
        group[0].fault(
            "index",
            f"no row has the index {question}, and lmms-eval counts a question by its row below "
            f"{ROTATION:,}",
        )
        return
    if main.why:
        return
    for row in group:
        _compare(row, main)


def _compare(row: _Row, main: _Row) -> None:
    """Of the same options the same one must be right; each row is scored by its own words."""
    alike = not row.why and sorted(row.held.values()) == sorted(main.held.values())
    if alike and row.right != main.right:
        where = f"in row {main.number}, another rotation of the same question"
        row.fault(
            "answer", f"{shown(row.answer)} is {shown(row.right)}, and {shown(main.right)} {where}"
        )


def _or_nothing(value: Any) -> str:
    return "an empty field" if value is None else shown(value)


def _emptied(dataset: Dataset, given: Mapping[str, list[Any]], rows: Sequence[_Row]) -> Dataset:
    """The data set with null for every field that holds nothing, and for what cannot be read."""
    cleaned = {
        name: [None if nothing(value) or value is UNREADABLE else value for value in given[name]]
        for name in EMPTIED
        if name in given and tables.is_text(dataset.features[name])
    }
    cleaned |= {letter: [row.options[letter] for row in rows] for letter in rows[0].options}
    cleaned["question"] = given["question"]
    cleaned = {
        name: [None if v is UNREADABLE else v for v in column] for name, column in cleaned.items()
    }
    changed = {name: column for name, column in cleaned.items() if column != given[name]}
    return tables.replaced(dataset, changed)
