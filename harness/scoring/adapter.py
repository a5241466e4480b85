"""The sweep as a model of lmms-eval: one request in, the missing cells of that row into the store.

Knows lmms-eval's requests, cells and the store; the engine does the work and is passed in. Must not
know how an answer is scored.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms

from harness.engine import NotFinite
from harness.errors import UserError
from harness.models.segments import Texts
from harness.records.store import Store
from harness.settings.grid import BLANK_IMAGE, Cell

Messages = list[dict[str, Any]]
#: Told of each row that is done, with the texts that were computed here by cell key.
Progress = Callable[[int, Mapping[str, str]], None]


class Engine(Protocol):
    """What the adapter asks of the engine, cells in, one result a cell out."""

    def answer(
        self,
        messages: Messages,
        cells: Sequence[Cell],
        generation: Mapping[str, Any],
        letters: Sequence[str],
        texts: Texts,
        trace: bool,
    ) -> list[Any]:
        """Prefill once and decode every cell; results in the order of the cells.

        Raises:
            NotFinite: the full cache's numbers are not finite.
        """


@dataclass(frozen=True)
class Plan:
    """What a sweep asks: cells by key, the data set row and option letters of every document.

    texts: what is known of the text of a document's prompt. shown: rows whose prompts are traced.
    turns: by document, when it is asked; empty: in the order of the data. task: what the run calls
    it.
    """

    cells: Mapping[str, Cell]
    rows: Sequence[int]
    letters: Sequence[Sequence[str]]
    texts: Callable[[int], Texts]
    shown: Collection[int]
    turns: Sequence[int] = ()
    task: str = ""

    @property
    def full(self) -> str:
        """The key of the full cache, the first cell."""
        return next(iter(self.cells))


class Collector(lmms):
    """Answers each request once for all cells that the store lacks."""

    is_simple = False

    def __init__(self, engine: Engine, plan: Plan, store: Store, progress: Progress) -> None:
        """Take the engine, what to ask, where to write and whom to tell of each row."""
        super().__init__()
        self.engine, self.plan, self.store, self.progress = engine, plan, store, progress
        self.computed = 0

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The full cache's text of every request; all cells' answers are in the store then.

        A row that another run computes at this moment is left for the end.
        """
        done = self.store.done(self.plan.cells)
        later = []
        for request in sorted(requests, key=self._turn):
            row = self._row(request)
            if len(done.get(row, ())) < len(self.plan.cells) and not self._answer(request):
                later.append(request)
        for request in later:
            self._answer(request, wait=True)
        full = self.store.read(self.plan.full)  # by now, whoever computed it
        texts = {row: str(answer["text"]) for row, answer in full.items()}
        # Of a run in parts the store of another one may hold it. Nothing is scored from here.
        return [GenerationResult(texts.get(self._row(one), "")) for one in requests]

    def _row(self, request: Instance) -> int:
        return self.plan.rows[request.args[3]]

    def _turn(self, request: Instance) -> int:
        return self.plan.turns[request.args[3]] if self.plan.turns else 0

    def _answer(self, request: Instance, wait: bool = False) -> bool:
        """Compute what the store lacks of a row; False where another run has it in hand."""
        row = self._row(request)
        claim = self.store.claims.take(self.plan.full, row, wait)
        if claim is None:
            return False
        try:
            done = self.store.have(row, self.plan.cells)
            missing = {key: cell for key, cell in self.plan.cells.items() if key not in done}
            texts = self._compute(request, row, missing) if missing else {}
        finally:
            self.store.claims.free(claim)
        self.progress(row, texts)
        return True

    def _compute(self, request: Instance, row: int, missing: Mapping[str, Cell]) -> dict[str, str]:
        """Answer a row; the text of each missing cell."""
        _, doc_to_messages, generation, position, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][position])
        try:
            found = answers(self.engine, self.plan, messages, missing, generation, position)
        except NotFinite as error:  # nothing of the row is stored: a rerun comes here again
            raise UserError(f"task={self.plan.task or task}, row {row}: {error}") from error
        for result in found.values():
            result.text = storable(result.text)
        self._write(row, found)
        self.computed += 1
        return {key: found[key].text for key in missing}

    def _write(self, row: int, found: Mapping[str, Any]) -> None:
        """One sample: answers, the prompt of the full cache, and what was kept where traced."""
        answers = {key: stored(result) for key, result in found.items()}
        prompt = {self.plan.full: described(found[self.plan.full])}
        shares = {key: result.kept_shares for key, result in found.items()}
        kept = {key: each for key, each in shares.items() if each is not None}
        self.store.write(row, answers, prompt, kept)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: an evicted cache is about generated tokens."""
        raise ValueError("evictbench answers generate_until tasks only: choose one of those.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: a second round would need the cache of the first."""
        raise ValueError("evictbench answers single-round tasks only: choose one of those.")

    def clean(self) -> None:
        """Keep everything: lmms-eval would delete the model after one evaluation."""


def answers(
    engine: Engine,
    plan: Plan,
    messages: Messages,
    missing: Mapping[str, Cell],
    generation: Mapping[str, Any],
    position: int,
) -> dict[str, Any]:
    """Decode the missing cells beside the full cache, and the blank image by itself.

    The full cache is decoded along even when its answer is stored: in low precision an answer
    depends a little on its batch, so cells and baseline share one.
    """
    blank = [key for key, cell in missing.items() if cell.control == BLANK_IMAGE]
    together = [plan.full, *(key for key in missing if key != plan.full and key not in blank)]
    cells = [plan.cells[key] for key in together]
    trace = plan.rows[position] in plan.shown
    how = (generation, plan.letters[position], plan.texts(position), trace)
    found = dict(zip(together, engine.answer(messages, cells, *how), strict=True))
    for key in blank:
        found[key] = engine.answer(blanked(messages), [plan.cells[key]], *how)[0]
    return found


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
        "text": result.text,
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


STEPS = ("prefill", "score", "compact", "decode")
