"""A scripted engine: what it says hangs on the cell and the prompt alone, so scores are known.

Knows cells and prompts; must not know how an answer is read or scored.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.settings.grid import Cell
from tests.run.fakes import result

PROMPT = 100  # tokens that could be kept
Says = Callable[[Cell, str, Sequence[str]], str]


def letter(cell: Cell, text: str, letters: Sequence[str]) -> str:
    """One of the letters that are there, by a hash of what is asked: the same in every run."""
    told = repr((cell.method, cell.params, cell.ratio, cell.budget, cell.control, text))
    choices = letters or "ABCD"
    return choices[hashlib.sha256(told.encode()).digest()[0] % len(choices)]


class Scripted:
    """Answers in the model's place; `says` chooses the words, by default a lone letter."""

    def __init__(self, says: Says = letter) -> None:
        self.says = says

    def prompt(self, messages: list[dict[str, Any]], *how: Any) -> list[dict[str, Any]]:
        """The messages, which `answer` takes as they are."""
        return messages

    def told(self) -> tuple[str, ...]:
        """Nothing is worth telling."""
        return ()

    def answer(
        self,
        messages: list[dict[str, Any]],
        cells: Sequence[Cell],
        generation: Mapping[str, Any],
        letters: Sequence[str],
        texts: Any = None,
        trace: bool = False,
    ) -> list[Any]:
        """What the real engine returns for each cell, with plausible figures."""
        parts = messages[0]["content"]
        given = [parts] if isinstance(parts, str) else [p.get("text", "") for p in parts]
        text = "".join(given)
        for part in parts if not isinstance(parts, str) else ():
            if part["type"] == "image":
                part["url"].load()  # a real processor decodes it
        return [result(self.says(c, text, letters), _held(c), letters, trace) for c in cells]


def _held(cell: Cell) -> Cell:
    """The cell with no more than the prompt to keep."""
    return cell if cell.budget is None else replace(cell, budget=min(cell.budget, PROMPT))
