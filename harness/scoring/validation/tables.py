"""Columns of a data set as plain values, and what they must be.

Knows the datasets library; must not know tasks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from datasets import Dataset, List, Sequence, Value

from harness.scoring.validation.faults import Asked

TEXT = ("string", "large_string", "string_view")
WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
WORDS = ("nan", "none", "null")  # what tables write, in any case, where nothing was
BATCH = 256


class Unreadable:
    """Stands for text that is no UTF-8."""

    def __repr__(self) -> str:
        """As a sentence names it."""
        return "bytes that are no UTF-8"


UNREADABLE = Unreadable()


def columns(dataset: Dataset, names: Iterable[str]) -> dict[str, list[Any]]:
    """The values of some columns, UNREADABLE where one cannot be decoded."""
    chosen = [name for name in names if name in dataset.column_names]
    found: dict[str, list[Any]] = {name: [] for name in chosen}
    for table in dataset.select_columns(chosen).with_format("arrow").iter(batch_size=BATCH):
        for name in chosen:
            found[name] += values(table.column(name))
    return found


def values(column: Any) -> list[Any]:
    """An arrow column as Python values; one bad value must not hide the others."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(one) for one in column]


def _value(one: Any) -> Any:
    try:
        return one.as_py()
    except UnicodeDecodeError:
        return UNREADABLE


def documents(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Every row, its images as stored bytes; UNREADABLE where a text cannot be decoded."""
    for table in dataset.with_format("arrow").iter(batch_size=BATCH):
        held = {name: values(table.column(name)) for name in table.column_names}
        yield from (dict(zip(held, row, strict=True)) for row in zip(*held.values(), strict=True))


def require(asked: Asked, dataset: Dataset, names: Iterable[str]) -> None:
    """Raise UserError where the data set lacks a column."""
    missing = [name for name in dict.fromkeys(names) if name not in dataset.column_names]
    if missing:
        plural = "columns" if len(missing) > 1 else "column"
        raise asked.error(
            f"its data has no {plural} {', '.join(missing)}; add what is missing, empty where it "
            "is not known"
        )


def require_kind(asked: Asked, dataset: Dataset, name: str, kind: str) -> None:
    """Raise UserError where a column that is there does not hold "text", "texts" or "number"."""
    if name not in dataset.column_names:
        return
    feature = dataset.features[name]
    fits = {"text": is_text, "texts": _is_texts, "number": _is_whole}[kind]
    wanted = {"text": "text", "texts": "lists of text", "number": "whole numbers"}[kind]
    if not fits(feature):
        held = getattr(feature, "dtype", type(feature).__name__)
        raise asked.error(f"column {name} of its data holds {held}; store {wanted} there")


def is_text(feature: Any) -> bool:
    """Whether a column holds text, or nothing at all."""
    return isinstance(feature, Value) and feature.dtype in (*TEXT, "null")


def _is_texts(feature: Any) -> bool:
    inner = getattr(feature, "feature", None)
    if isinstance(feature, list) and len(feature) == 1:
        inner = feature[0]
    listed = isinstance(feature, List | Sequence | list)
    return (listed and is_text(inner)) or (isinstance(feature, Value) and feature.dtype == "null")


def _is_whole(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in (*WHOLE, "null")


def lacking(functions: Iterable[Callable[..., Any]], dataset: Dataset) -> list[str]:
    """The columns that functions of a row ask for and the data set does not have.

    They are tried on a row that holds nothing: what else they then complain about is no matter.
    """
    document: dict[str, Any] = dict.fromkeys(dataset.column_names)
    missing: list[str] = []
    for function in functions:
        while name := _asked_for(function, document):
            document[name] = None
            missing.append(name)
    return missing


def _asked_for(function: Callable[..., Any], document: Mapping[str, Any]) -> str | None:
    try:
        function({**document})
    except KeyError as error:
        name = error.args[0] if error.args else None
        return name if isinstance(name, str) and name not in document else None
    except Exception:  # not about a missing column: it is met again where rows are read
        return None
    return None


def replaced(dataset: Dataset, changed: Mapping[str, list[Any]]) -> Dataset:
    """The data set with other texts in some columns; the bytes of its images are not copied."""
    for name, texts in changed.items():
        dataset = dataset.remove_columns(name).add_column(name, texts, feature=Value("string"))
    return dataset


def blank(value: object) -> bool:
    """Whether a field holds nothing: null, not a number, or no more than whitespace."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def missing_word(value: object) -> bool:
    """Whether a field holds one of the words that tables write for nothing."""
    return isinstance(value, str) and value.strip().casefold() in WORDS


def nothing(value: object) -> bool:
    """Whether a field is blank or says so by a word."""
    return blank(value) or missing_word(value)
