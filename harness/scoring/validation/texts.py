"""Which rows can be asked and scored in tasks that are not of MMBench's family.

This project's own tasks have schemas, listed here by the module that makes their prompts. Of any
other task it is only known whether its own functions take a row. Knows lmms-eval's task objects;
must not know models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from harness.scoring.validation import pictures, tables
from harness.scoring.validation.faults import Asked, Fault, shown
from harness.scoring.validation.tables import UNREADABLE, blank

TEXT, MAY_BE_EMPTY, TEXTS, NUMBER = "text", "text, may be empty", "texts", "number"
DRAWN = {"input": TEXT, "context_end": NUMBER, "answer_prefix": MAY_BE_EMPTY, "outputs": TEXTS}
FAMILIES: Mapping[str, Mapping[str, str]] = {
    "harness.scoring.longbench.prompts": {
        "context": TEXT, "input": MAY_BE_EMPTY, "answers": TEXTS,
    },
    "harness.embedded.longbench_prompts": {
        "context": TEXT, "input": MAY_BE_EMPTY, "answers": TEXTS, "dataset": TEXT,
    },
    "harness.scoring.infinitebench.prompts": {
        "context": TEXT, "input": MAY_BE_EMPTY, "answer": TEXTS,
    },
    "harness.scoring.ruler.prompts": DRAWN,
    "harness.scoring.needle.visual": {"question": TEXT, "answer": TEXT},
}  # fmt: skip
TooLong = Callable[[str, int], str | None]  # a prompt's text and the tokens of the answer to come
PROBE = "0"  # an answer that every metric of ours reads


@dataclass(frozen=True)
class Family:
    """The columns of one of this project's schemas and what stands in them."""

    columns: Mapping[str, str]
    numbers: tuple[str, ...]  # columns that the tables sort rows by

    def fault(self, row: int, document: Mapping[str, Any]) -> Fault | None:
        """The first field of a row that holds nothing of its kind."""
        for column, kind in self.columns.items():
            if why := _wrong(document[column], kind):
                return Fault(row, column, why)
        empty = next((name for name in self.numbers if document[name] is None), None)
        return None if empty is None else Fault(row, empty, "it is empty")


def family_of(task: Any) -> Family | None:
    """The schema of a task of this project; None for others."""
    known = FAMILIES.get(str(getattr(task.config.doc_to_text, "__module__", "")))
    if known is None:
        return None
    columns = {**known}
    if _classifies(task):
        columns["all_classes"] = TEXTS
    given = task.config.metadata if isinstance(task.config.metadata, dict) else {}
    kinds = (given.get(name) for name in ("category", "l2_category"))
    return Family(columns, tuple(str(name) for name in kinds if name))


def _classifies(task: Any) -> bool:
    return "classification" in str(getattr(task.config.process_results, "__name__", ""))


def examine(asked: Asked, task: Any, dataset: Dataset) -> list[Fault]:
    """What is wrong with the rows of a split, one fault a row.

    Raises:
        UserError: a column is missing or of another type.
    """
    family = family_of(task)
    heads = {fault.row: fault for fault in pictures.heads(dataset, required=family is not None)}
    if family is None:
        return [*heads.values()]
    tables.require(asked, dataset, [*family.columns, *family.numbers])
    for column, kind in family.columns.items():
        tables.require_kind(asked, dataset, column, kind.split(",")[0])
    chosen = dataset.select_columns([*family.columns, *family.numbers])
    found = [
        fault
        for row, document in enumerate(tables.documents(chosen))
        if (fault := family.fault(row, document) or heads.get(row))
    ]
    return found


def _wrong(value: Any, kind: str) -> str | None:
    """Why a field is none of its kind."""
    if value is None:
        return "it is empty"
    if kind == TEXTS:
        if not value:
            return "it is an empty list"
        if any(one is None or one is UNREADABLE for one in value):
            return f"{shown(value)} has an element that is no text"
        return f"{shown(value)} says nothing" if all(map(blank, value)) else None
    if value is UNREADABLE:
        return "its text is no UTF-8"
    if kind == TEXT and blank(value):
        return "it is empty"
    return f"{value} is negative" if kind == NUMBER and value < 0 else None


def unasked(
    task: Any, rows: Sequence[int], documents: Dataset, too_long: TooLong | None = None
) -> Iterator[Fault]:
    """Rows that the task's own functions do not take, whatever their schema is.

    Args:
        task: lmms-eval's task object.
        rows: the positions of the documents in the whole data set.
        documents: without images.
        too_long: why a model cannot take a text, if that is known; of prompts that may be cut, and
            of those that are drawn to a length, nothing is asked.
    """
    own = family_of(task) is not None
    fixed = too_long if not callable(task.config.doc_to_messages) else None
    for row, document in zip(rows, _readable(documents), strict=True):
        why = _failure(task, document, own, fixed)
        if why:
            yield Fault(row, None, why)


def _readable(documents: Dataset) -> Iterator[dict[str, Any] | None]:
    for position in range(len(documents)):
        try:
            yield documents[position]
        except UnicodeDecodeError:
            yield None


def _failure(
    task: Any, document: Mapping[str, Any] | None, own: bool, too_long: TooLong | None
) -> str | None:
    if document is None:
        return "one of its texts is no UTF-8"
    try:
        text = task.doc_to_text(document)
        if own and blank(text):
            return "its prompt is empty"
        str(text).encode()
    except Exception as error:  # the task's own functions may fail in any way
        return f"its prompt cannot be made ({_said(error)})"
    try:
        task.doc_to_target(document)
        if own and callable(task.config.process_results):  # lmms-eval's own tries for a minute
            task.config.process_results(document, [PROBE])
    except Exception as error:  # as above
        return f"an answer to it cannot be scored ({_said(error)})"
    return too_long(str(text), _answer_tokens(task)) if too_long else None


def _answer_tokens(task: Any) -> int:
    given = (task.config.generation_kwargs or {}).get("max_new_tokens")
    return given if isinstance(given, int) else 0


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
