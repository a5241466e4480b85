"""A question set and an engine small enough to test a whole sweep in a second."""

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from harness.engine import NotFinite
from harness.models.precision import stopped
from harness.models.segments import Texts
from harness.settings.grid import FULL, Cell

COLORS = ("red", "green", "blue", "yellow")
FRONT = """---
configs:
- config_name: en
  data_files:
  - split: dev
    path: en/dev-*
---
"""


def write_mmbench(folder: Path, questions: int = 9) -> Path:
    """A folder in MMBench's layout: `questions` questions of 2 to 4 options, every rotation."""
    from datasets import Dataset, Features, Value  # late: programs that tests start need none
    from datasets import Image as Picture

    rows = [row for number in range(questions) for row in _rotations(number)]
    rows.sort(key=lambda row: row["index"])  # all first rotations, then all second ones, ...
    (folder / "en").mkdir(parents=True)
    (folder / "README.md").write_text(FRONT)
    texts = {name: Value("string") for name in rows[0]}
    features = Features({**texts, "index": Value("int64"), "image": Picture()})
    frame = Dataset.from_list(rows, features=features)
    frame.to_parquet(str(folder / "en" / "dev-00000-of-00001.parquet"))
    return folder


def _rotations(number: int) -> list[dict[str, Any]]:
    count = 2 + number % 3
    options = COLORS[:count]
    right = number % count
    rows = []
    for turn in range(count):
        texts = [options[(i - turn) % count] for i in range(count)]
        letters = dict(zip("ABCD", [*texts, None, None, None][:4], strict=True))
        rows.append(
            {
                "index": number + turn * 1_000_000,
                "question": f"What is the color of shape {number}?",
                "hint": "Look closely." if number % 4 == 1 else None,
                "answer": "ABCD"[texts.index(options[right])],
                **letters,
                "category": f"kind_{number % 3}",
                "image": {"bytes": _png(number), "path": None},
                "source": "test",
                "L2-category": "perception" if number % 2 else "reasoning",
                "comment": "",
                "split": "dev",
            }
        )
    return rows


def _png(number: int) -> bytes:
    image = Image.new("RGB", (8 + number, 8), (10 * number, 0, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class FakeEngine:
    """Answers from a hash of cell and question: the same at every run, in every batch."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.nonfinite: Callable[[Cell, str], int] = lambda cell, text: 0
        self.calls: list[list[Cell]] = []
        self.images: list[Image.Image] = []

    def prompt(
        self, messages: list[dict[str, Any]], generation: Mapping[str, Any], texts: Texts
    ) -> list[dict[str, Any]]:
        return messages

    def told(self) -> tuple[str, ...]:
        return ()

    def answer(
        self,
        messages: list[dict[str, Any]],
        cells: Sequence[Cell],
        generation: Mapping[str, Any],
        letters: Sequence[str],
        texts: Texts | None = None,
        trace: bool = False,
    ) -> list[SimpleNamespace]:
        time.sleep(self.pause)
        self.calls.append(list(cells))
        parts = messages[0]["content"]
        self.images += [part["url"] for part in parts if part["type"] == "image"]
        text = next(part["text"] for part in parts if part["type"] == "text")
        bad = [self.nonfinite(cell, text) for cell in cells]
        if any(
            n and cell.method == FULL and cell.control == "none"
            for n, cell in zip(bad, cells, strict=True)
        ):
            raise NotFinite(stopped("tiny", "float16"))
        said = [self._say(cell, text, letters) for cell in cells]
        return [
            result(each, cell, letters, trace, count)
            for each, cell, count in zip(said, cells, bad, strict=True)
        ]

    def _say(self, cell: Cell, text: str, letters: Sequence[str]) -> str:
        seed = repr((cell.method, cell.params, cell.ratio, cell.budget, cell.control, text))
        seed += "" if cell.under == "replay" else cell.under
        digest = hashlib.sha256(seed.encode()).digest()
        letter = (letters or "ABCD")[digest[0] % len(letters or "ABCD")]
        styles = (letter, f"{letter}.", f"({letter})", "red", "it is green", "I do not know", "")
        return styles[digest[1] % len(styles)] if digest[2] < 128 else letter


def _fetched(cell: Cell) -> dict[str, int]:
    """What lies on the host and comes from there, where a cell says that some does."""
    away = dict(cell.params).get("cache_mass") is not None
    return {"host_bytes": 400 * away, "fetched_bytes": 300 * away, "passes": 3 * away}


def result(
    text: str,
    cell: Cell,
    letters: Sequence[str] = (),
    trace: bool = False,
    nonfinite: int = 0,
) -> SimpleNamespace:
    """What the engine returns for a cell, with plausible figures."""
    kept = 100 * (1 - (cell.ratio or 0.0)) if cell.budget is None else float(cell.budget)
    shown = SimpleNamespace(tokens=[f"t{i}" for i in range(101)], grids=[(3, 8, 8)])
    return SimpleNamespace(
        text=text,
        token_ids=[1, 2],
        exposed_tokens=int(cell.evicts),
        prompt_tokens=101,
        image_tokens=64,
        evictable_tokens=100,
        kept_tokens=kept,
        kept_image=0.64 * kept,
        kept_text=0.36 * kept,
        cache_bytes=int(kept) * 10,
        full_cache_bytes=1000,
        window=16 if cell.evicts else None,
        adaptive=0.0 if cell.method == "restkv" else None,
        fallback="streaming_llm" if cell.method == "lacache" else None,
        truncated_tokens=0,
        nonfinite_tokens=nonfinite,
        letter_logits={letter: nan if nonfinite else 0.5 for letter in letters},
        timings={"prefill": 0.1, "score": 0.2, "compact": 0.3, "decode": 0.4, "search": 0.025},
        computed_blocks={0: 0.5, 1: 0.25} if cell.pattern else None,
        **_fetched(cell),
        segments=[("template", 3), ("image", 64), ("question", 34)],
        kept_shares=[kept / 100] * 100 if trace else None,
        shown=shown if trace else None,
    )
