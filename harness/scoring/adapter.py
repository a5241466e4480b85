"""The sweep as a model of lmms-eval: one request in, the missing cells of that row into the store.

Knows lmms-eval's requests, cells and the store; who answers is passed in. Must not know how an
answer is scored.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms

from harness.models.segments import Texts
from harness.records.store import Store
from harness.scoring.rows import Answered, Messages, Row
from harness.settings.grid import Cell, full_cells

#: Told of each row that is done, with the texts that were computed here by cell key.
Progress = Callable[[int, Mapping[str, str]], None]


class Workers(Protocol):
    """Who answers rows, in this process or others."""

    def run(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Answered]]:
        """Yields each row with its answers, as they come; takes a few rows ahead of them.

        Raises:
            UserError: a row cannot be answered.
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
        """The key of the full cache under the first protocol, the first cell."""
        return next(iter(self.cells))

    def row(
        self,
        position: int,
        missing: Mapping[str, Cell],
        messages: Callable[[], Messages],
        generation: Mapping[str, Any],
    ) -> Row:
        """The row of a document, to be answered for some cells."""
        return Row(
            self.task,
            self.rows[position],
            self.turns[position] if self.turns else position,
            messages,
            missing,
            full_cells(self.cells),
            generation,
            self.letters[position],
            self.texts(position),
            self.rows[position] in self.shown,
        )


class Collector(lmms):
    """Answers each request once for all cells that the store lacks."""

    is_simple = False

    def __init__(self, workers: Workers, plan: Plan, store: Store, progress: Progress) -> None:
        """Take who answers, what to ask, where to write and whom to tell of each row."""
        super().__init__()
        self.workers, self.plan, self.store, self.progress = workers, plan, store, progress
        self.computed = 0
        self.told: dict[str, None] = {}  # what a person should know of the answers
        self._claims: dict[int, int] = {}

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The full cache's text of every request; all cells' answers are in the store then.

        A row that another run computes at this moment is left for the end. Then one is claimed at
        a time: runs that hold a row and wait for another's might wait for each other.
        """
        done = self.store.done(self.plan.cells)
        lacking = [
            request
            for request in sorted(requests, key=self._turn)
            if len(done.get(self._row(request), ())) < len(self.plan.cells)
        ]
        later: list[Instance] = []
        self._answer(self._claimed(lacking, later))
        for request in later:
            self._answer(self._claimed([request], None))
        full = self.store.read(self.plan.full)  # by now, whoever computed it
        texts = {row: str(answer["text"]) for row, answer in full.items()}
        # Of a run in parts the store of another one may hold it. Nothing is scored from here.
        return [GenerationResult(texts.get(self._row(one), "")) for one in requests]

    def _row(self, request: Instance) -> int:
        return self.plan.rows[request.args[3]]

    def _turn(self, request: Instance) -> int:
        return self.plan.turns[request.args[3]] if self.plan.turns else 0

    def _claimed(self, requests: Iterable[Instance], later: list[Instance] | None) -> Iterator[Row]:
        """The rows to compute; those that another run has in hand go into `later`, or are waited
        for where that is None.
        """
        for request in requests:
            row = self._row(request)
            claim = self.store.claims.take(self.plan.full, row, wait=later is None)
            if claim is None:
                assert later is not None
                later.append(request)
                continue
            self._claims[row] = claim
            done = self.store.have(row, self.plan.cells)
            missing = {key: cell for key, cell in self.plan.cells.items() if key not in done}
            if missing:
                yield self._asked(request, missing)
            else:
                self._free(row)
                self.progress(row, {})

    def _asked(self, request: Instance, missing: Mapping[str, Cell]) -> Row:
        _, doc_to_messages, generation, position, task, split = request.args
        data = self.task_dict[task][split]
        messages = partial(_messages, doc_to_messages, data, position)
        return self.plan.row(position, missing, messages, generation)

    def _answer(self, rows: Iterator[Row]) -> None:
        """Let the rows be answered and put each into the store when it comes."""
        for row, found in self.workers.run(rows):
            told = (found.answers, found.prompts, found.kept, found.prefills, found.fetches)
            self.store.write(row.number, *told)
            self._free(row.number)
            self.computed += 1
            self.told |= dict.fromkeys(found.told)
            self.progress(row.number, {key: str(found.answers[key]["text"]) for key in row.cells})

    def _free(self, row: int) -> None:
        self.store.claims.free(self._claims.pop(row))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: an evicted cache is about generated tokens."""
        raise ValueError("evictbench answers generate_until tasks only: choose one of those.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: a second round would need the cache of the first."""
        raise ValueError("evictbench answers single-round tasks only: choose one of those.")

    def clean(self) -> None:
        """Keep everything: lmms-eval would delete the model after one evaluation."""


def _messages(doc_to_messages: Callable[[Any], Messages], data: Any, position: int) -> Messages:
    return doc_to_messages(data[position])
