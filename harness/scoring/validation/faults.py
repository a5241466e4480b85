"""What is wrong with a row, in words, and what follows from it: a refusal, or questions left out.

Knows row numbers and question ids; must not know tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import UserError

NAMED = 10  # questions that a sentence names
SHOWN = 40  # characters of a value in a sentence


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be scored. row: its position in the whole data set, counted from 0."""

    row: int
    column: str | None
    why: str
    index: int | None = None

    def __str__(self) -> str:
        """The row, the column and the reason, as part of a sentence."""
        index = "" if self.index is None else f" (index {self.index})"
        column = "" if self.column is None else f", column {self.column}"
        return f"row {self.row}{index}{column}: {self.why}"


@dataclass(frozen=True)
class Asked:
    """How a task is called: in tables, and in settings; and what is to happen to bad rows."""

    name: str
    label: str
    invalid: str = "refuse"

    def error(self, what: str) -> UserError:
        """The refusal of a whole data set."""
        return UserError(f"task={self.name} cannot be scored: {what}.")


def settle(asked: Asked, faults: Sequence[Fault], ids: Sequence[int]) -> list[int]:
    """The rows of questions without any fault, in their order.

    Args:
        asked: what to do where there is a fault.
        faults: what is wrong, in the order of rows.
        ids: the question of each row of the whole data set.

    Raises:
        UserError: there is a fault and none may be left out, or nothing would be left.
    """
    bad = {ids[fault.row] for fault in faults}
    kept = [row for row, question in enumerate(ids) if question not in bad]
    if not faults:
        return kept
    total = len({*ids})
    counted = f"{len(bad):,} of {total:,} questions"
    if asked.invalid == "refuse":
        raise asked.error(
            f"{faults[0]}; correct the data, or leave the {counted} with such rows out by "
            f"tasks.{asked.label}.invalid=skip"
        )
    if not kept:
        raise asked.error(f"no question is left, for {counted} have bad rows: {faults[0]}")
    return kept


def told(asked: Asked, faults: Sequence[Fault], ids: Sequence[int]) -> str:
    """What was left out, in a sentence."""
    first: dict[int, Fault] = {}
    for fault in faults:
        first.setdefault(ids[fault.row], fault)
    names = [name_of(question) for question in list(first)[:NAMED]]
    more = f" and {len(first) - NAMED:,} more" if len(first) > NAMED else ""
    plural = "question" if len(first) == 1 else "questions"
    return (
        f"{len(first):,} of {len({*ids}):,} {plural} of {asked.name} are left out "
        f"(tasks.{asked.label}.invalid=skip), for they cannot be scored: {', '.join(names)}{more}; "
        f"{faults[0]}; manifest.json names them all."
    )


def listed(faults: Sequence[Fault], ids: Sequence[int]) -> list[dict[str, object]]:
    """The questions left out, each with its first fault, as plain values."""
    first: dict[int, dict[str, object]] = {}
    for fault in faults:
        question = ids[fault.row]
        first.setdefault(question, {"question": name_of(question), **vars(fault)})
    return list(first.values())


def name_of(question: int) -> str:
    """The id of a question; of one whose index cannot be read, its row."""
    return str(question) if question >= 0 else f"that of row {own_row(question)}"


def without_id(row: int) -> int:
    """The id of a row that belongs to no question: no real id is negative."""
    return -1 - row


def own_row(question: int) -> int:
    """The row that `without_id` made the id of."""
    return -1 - question


def shown(value: object) -> str:
    """A value for a sentence, without its end where it is long and without control characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
