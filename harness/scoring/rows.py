"""One row of a task: what is asked of the engine, and what comes back as the store keeps it.

A row travels to whichever process answers it. Must not know lmms-eval, the store, or how an answer
is scored.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from typing import Any, Protocol

from harness.engine import NoRoom, NotFinite
from harness.errors import UserError
from harness.models.segments import Texts
from harness.records.schema import FETCH_FIELDS
from harness.settings.grid import BLANK_IMAGE, Cell

Messages = list[dict[str, Any]]
STEPS = ("prefill", "score", "compact", "decode")


class RowFailed(UserError):
    """This row cannot be answered; others may."""


class Engine(Protocol):
    """What answers a row: cells in, one result a cell out."""

    def prompt(self, messages: Messages, generation: Mapping[str, Any], texts: Texts) -> Any:
        """Make of messages what `answer` takes; another thread may call it meanwhile."""

    def answer(
        self,
        messages: Any,
        cells: Sequence[Cell],
        generation: Mapping[str, Any],
        letters: Sequence[str],
        texts: Texts,
        trace: bool,
    ) -> list[Any]:
        """Prefill once and decode every cell; results in the order of the cells.

        Raises:
            NoRoom: there is not enough memory for this prompt.
            NotFinite: the full cache's numbers are not finite.
        """

    def told(self) -> Sequence[str]:
        """What a person should know of how the answers so far were computed."""


@dataclass(frozen=True)
class Row:
    """A row and the cells that lack an answer to it.

    number: in the data set. turn: of its question. messages: makes the prompt in lmms-eval's
    protocol. cells: by key. full: the full cache under each protocol and prefill, by key.
    generation: lmms-eval's arguments. letters: whose logits are wanted. texts: what the prompt's
    segments tell apart. trace: also record which tokens each cell keeps.
    """

    task: str
    number: int
    turn: int
    messages: Callable[[], Messages]
    cells: Mapping[str, Cell]
    full: Mapping[str, Cell]
    generation: Mapping[str, Any]
    letters: Sequence[str]
    texts: Texts
    trace: bool

    @property
    def title(self) -> str:
        """Such as "task=mmbench_mini, row 7"."""
        return f"task={self.task}, row {self.number}"

    def loaded(self) -> "Row":
        """The same with its messages made, so that it can leave this process."""
        return replace(self, messages=partial(_same, self.messages()))


@dataclass(frozen=True)
class Ready:
    """The prompt of a row, and the same with blank images where that is asked."""

    prompt: Any
    blank: Any


@dataclass(frozen=True)
class Answered:
    """A row as `Store.write` takes it: answers, prompts, kept shares, prefills and what came from
    the host, by cell key.

    told: what a person should know of how it was computed.
    """

    answers: Mapping[str, Mapping[str, object]]
    prompts: Mapping[str, Mapping[str, object]]
    kept: Mapping[str, Sequence[float]]
    told: Sequence[str] = ()
    prefills: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    fetches: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def ready(engine: Engine, row: Row) -> Ready:
    """Make the prompts of a row."""
    messages = row.messages()
    asked = any(cell.control == BLANK_IMAGE for cell in row.cells.values())
    return Ready(
        engine.prompt(messages, row.generation, row.texts),
        engine.prompt(blanked(messages), row.generation, row.texts) if asked else None,
    )


def results(engine: Engine, row: Row, made: Ready) -> dict[str, Any]:
    """The engine's results by cell key, one protocol and prefill after the other: missing cells
    beside the full cache, blank images alone.

    The full cache is decoded along even when its answer is stored: in low precision an answer
    depends a little on its batch, so cells and baseline share one.
    """
    how = (row.generation, row.letters, row.texts, row.trace)
    found: dict[str, Any] = {}
    for key, full in row.full.items():
        asked = {n: cell for n, cell in row.cells.items() if cell.under == full.under}
        blank = [name for name, cell in asked.items() if cell.control == BLANK_IMAGE]
        others = {n: cell for n, cell in asked.items() if n != key and n not in blank}
        if key in asked or others:
            together = {key: full, **others}
            answers = engine.answer(made.prompt, list(together.values()), *how)
            found |= zip(together, answers, strict=True)
        for name in blank:
            found[name] = engine.answer(made.blank, [asked[name]], *how)[0]
    return found


def answered(engine: Engine, row: Row, made: Ready) -> Answered:
    """Answer a row.

    Raises:
        RowFailed: the row does not fit into memory, which says nothing of others.
        UserError: the full cache's numbers are not finite. Nothing of the row is stored either way.
    """
    try:
        found = results(engine, row, made)
    except NoRoom as error:
        raise RowFailed(f"{row.title}: {error}") from error
    except NotFinite as error:
        raise UserError(f"{row.title}: {error}") from error
    shares = {key: result.kept_shares for key, result in found.items()}
    return Answered(
        {key: stored(result) for key, result in found.items()},
        {key: described(found[key]) for key in row.full if key in found},
        {key: each for key, each in shares.items() if each is not None},
        engine.told(),
        {key: read(found[key]) for key in row.full if key in found and sparse(found[key])},
        {key: fetched(result) for key, result in found.items() if result.passes},
    )


def refuse(failed: Sequence[str]) -> None:
    """UserError where rows failed, given what was said of each; all others are answered by then."""
    if failed:
        more = f" {len(failed) - 1:,} more rows failed." if len(failed) > 1 else ""
        raise UserError(f"{failed[0]}{more} All other answers are stored.")


def blanked(messages: Messages) -> Messages:
    """The same messages with every image replaced by a uniform mid-grey one of its size."""
    from PIL import Image

    def blank(part: dict[str, Any]) -> dict[str, Any]:
        if part.get("type") != "image":
            return part
        image = part["url"]
        image = Image.open(image) if isinstance(image, str) else image
        return {**part, "url": Image.new("RGB", image.size, (128, 128, 128))}

    return [
        {**message, "content": [blank(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def storable(text: str) -> str:
    """The text with halves of characters, which UTF-8 cannot hold, as the replacement mark."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def stored(result: Any) -> dict[str, object]:
    """An engine result as the values that the store keeps."""
    return {
        "text": storable(result.text),
        "token_ids": json.dumps([int(token) for token in result.token_ids]),
        "exposed_tokens": int(result.exposed_tokens),
        "prompt_tokens": int(result.prompt_tokens),
        "image_tokens": int(result.image_tokens),
        "evictable_tokens": int(result.evictable_tokens),
        "kept_tokens": float(result.kept_tokens),
        "kept_image": float(result.kept_image),
        "kept_text": float(result.kept_text),
        "cache_bytes": int(result.cache_bytes),
        "full_cache_bytes": int(result.full_cache_bytes),
        "window_effective": None if result.window is None else int(result.window),
        "adaptive_active": None if result.adaptive is None else float(result.adaptive),
        "fallback": result.fallback,
        "truncated_tokens": int(result.truncated_tokens),
        "nonfinite_tokens": int(result.nonfinite_tokens),
        "letter_logits": json.dumps(
            {k: float(v) if isfinite(v) else None for k, v in result.letter_logits.items()}
        ),
        **{f"{step}_s": float(result.timings[step]) for step in STEPS},
    }


def described(result: Any) -> dict[str, object]:
    """The prompt of an engine result as the values that the store keeps."""
    shown = result.shown
    return {
        "segments": json.dumps(result.segments),
        "tokens": None if shown is None else storable(json.dumps(shown.tokens, ensure_ascii=False)),
        "images": json.dumps([] if shown is None else shown.grids),
    }


def sparse(result: Any) -> bool:
    """Whether the prompt of an engine result was read sparsely."""
    return getattr(result, "computed_blocks", None) is not None


def read(result: Any) -> dict[str, object]:
    """How the prompt of an engine result was read, as the values that the store keeps."""
    return {
        "search_s": float(result.timings["search"]),
        "computed": json.dumps(result.computed_blocks),
    }


def fetched(result: Any) -> dict[str, object]:
    """What an engine result had on the host, as the values that the store keeps."""
    return {name: int(getattr(result, name)) for name in FETCH_FIELDS}


def _same(messages: Messages) -> Messages:
    return messages
