"""Contexts that are too long to be repeated, found before a model is loaded.

Knows tasks by their messages, and what a model says without its weights; must not know the store.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.settings import caches
from harness.settings.config import ModelConfig
from harness.settings.grid import FULL, Cell

if TYPE_CHECKING:
    from harness.scoring.benchmark import Benchmark

AROUND = 64  # tokens that may follow a question, and what cutting to a length may leave free


def refuse(name: str, benchmark: "Benchmark", model: ModelConfig, cells: Iterable[Cell]) -> None:
    """Raise UserError where some method repeats contexts of a task for which a model lacks
    positions.

    It counts texts alone, so it may say nothing of a context that a template or images make too
    long: that prompt is refused when it is read.
    """
    parts = _parts(cells)
    if not parts or benchmark.shows_images:
        return
    from harness.engine import Generation, reciting  # late: most runs ask for no such method
    from harness.models import chat, tokenizer

    given = (model.pretrained, model.revision, model.trust_remote_code)
    longest = tokenizer.context(*given)
    if longest is None:
        return
    encode = _Counted(tokenizer.load(*given)[0])
    words = encode(reciting.GO_ON) + reciting.HINT
    try:
        answer = Generation.from_kwargs(benchmark.generation).max_new_tokens
    except ValueError:
        return  # no prompt will be read
    room = min((model.max_length or longest) - answer, model.max_prompt or longest)
    needed: dict[str, dict[int, int]] = {}
    for place, row in enumerate(benchmark.rows):
        messages = benchmark.messages(place)
        before, behind = _halves(messages)
        if 2 * len(before.encode()) + words < longest:
            continue  # no tokenizer makes more tokens than bytes
        # Its first and last tokens may go into one with what surrounds it.
        context = encode(before) - 2
        cut = context + encode(behind) > room and chat.read(messages).cuttable
        if cut:  # its middle will be left out
            context = min(context, room - encode(behind) - AROUND)
        for label, chunk in parts.items():
            needed.setdefault(label, {})[row] = context + words + min(chunk, context)
    for label, found in needed.items():
        rows = [row for row, positions in found.items() if positions > longest]
        if rows:
            raise UserError(
                f"methods.{label} has the model repeat the context, and {len(rows):,} of "
                f"{len(benchmark.rows):,} prompts of task={name} are too long for that: row "
                f"{rows[0]} needs at least {found[rows[0]]:,} positions, and {model.name} takes "
                f"{longest:,}: give a smaller methods.{label}.chunk or model.max_length, or leave "
                "the method out."
            )


def _parts(cells: Iterable[Cell]) -> dict[str, int]:
    """By label, the tokens that a method has repeated at a time."""
    import methods

    found: dict[str, int] = {}
    for cell in cells:
        params, _ = caches.parted(dict(cell.params))
        if cell.method != FULL and "chunk" in params and cell.label not in found:
            part = methods.build(cell.method, **params).recites
            found |= {} if part is None else {cell.label: part}
    return found


class _Counted:
    """How many tokens a text has."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False).input_ids) if text else 0


def _halves(messages: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """The text up to the end of the part that is marked as context, and what follows it."""
    before, behind = "", ""
    for said in messages:
        content = said["content"]
        for part in [content] if isinstance(content, str) else content:
            text = part if isinstance(part, str) else str(part.get("text") or "")
            behind += text
            if not isinstance(part, str) and part.get("context"):
                before, behind = before + behind, ""
    return before, behind
