"""The file that MMBench's server takes for a split whose answers are secret.

Its form is the one that the README of open-compass/MMBench asks for: an Excel table with a row a
question row and the fields below, empty where a question has fewer than four options. Knows the
MMBench schema; must not know models, methods or lmms-eval.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.scoring.strict import present

FIELDS = ("index", "question", "A", "B", "C", "D", "prediction", "category", "l2_category")
_LIMIT = 32_767  # UTF-16 units of an Excel cell
# No XML, hence no Excel file, holds these; nor half a character.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


def write(documents: Sequence[Mapping[str, Any]], texts: Sequence[str], path: Path) -> Path:
    """Write one cell's answers, whole or not at all.

    Args:
        documents: rows of the data set; images are not needed.
        texts: the answer to each of them, as the model wrote it.
        path: the .xlsx file; its folder is made.

    Returns:
        The path.

    Raises:
        ValueError: not one text a document.
    """
    rows = [_row(document, text) for document, text in zip(documents, texts, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    with pd.ExcelWriter(draft, engine="openpyxl") as writer:
        pd.DataFrame(rows, columns=list(FIELDS)).to_excel(writer, sheet_name="answers", index=False)
        for cell in (cell for row in writer.sheets["answers"].iter_rows() for cell in row):
            if isinstance(cell.value, str):
                cell.data_type = "s"  # "=B" is no formula and "#N/A" no error
    return draft.replace(path)


def _row(document: Mapping[str, Any], text: str) -> dict[str, Any]:
    level = document.get("L2-category", document.get("l2-category"))
    known = {**document, "l2_category": level, "prediction": text}
    row: dict[str, Any] = {name: _text(known.get(name)) for name in FIELDS}
    return {**row, "index": int(document["index"]), "prediction": _legible(text)}


def _text(value: Any) -> str | None:
    return _legible(str(value)) if present(value) else None


def _legible(text: str) -> str:
    """The text as a cell can hold it: without its middle where it is too long."""
    units = _FORBIDDEN.sub("", text).encode("utf-16-le")
    if len(units) <= 2 * _LIMIT:
        return units.decode("utf-16-le")
    head, tail = units[: _LIMIT + 1], units[-(_LIMIT - 1) :]  # an even number of bytes each
    return head.decode("utf-16-le", "ignore") + tail.decode("utf-16-le", "ignore")
