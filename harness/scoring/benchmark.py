"""A task of lmms-eval with its questions: loading, choosing whole questions, fingerprint, scores.

Knows lmms-eval's public task API; must not know models, methods or the store.
"""

import hashlib
from argparse import Namespace
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags

from harness.models.segments import Texts
from harness.scoring import generic, loading, mmbench_submission
from harness.scoring.fingerprint import fingerprint
from harness.scoring.judgement import Judgement, Question
from harness.scoring.scorers import scorer_for
from harness.scoring.validation import faults
from harness.scoring.validation.texts import TooLong
from harness.settings.config import TaskConfig

EXHIBITS = 8  # questions whose prompts are shown


class Benchmark:
    """The questions a run asks.

    `rows` are positions in the whole data set, so they mean the same whatever the limit is;
    `questions[i]` and lmms-eval's document i belong to `rows[i]`. `shown` are the rows whose
    prompts are recorded in full.
    """

    def __init__(
        self,
        name: str,
        config: TaskConfig,
        limit: int | None = None,
        label: str | None = None,
        too_long: TooLong | None = None,
    ) -> None:
        """Load the single task `config.lmms_task` and keep `limit` whole questions.

        Args:
            name: what tables call the task.
            config: its settings.
            limit: how many questions; None: all.
            label: what settings call the task; None: as tables do.
            too_long: why the model cannot take a prompt's text, where that is known.

        Raises:
            UserError: the task, its data or its scorer is not there, or does not fit, or the data
                holds rows that cannot be scored.
        """
        self.name, self.config = name, config
        self.task = loading.load(name, config, label, too_long)
        self.split = self.task.split
        self.scorer = scorer_for(config, self.task)
        self.scoring: Any = (
            None  # the task's own function while `evaluate` has another in its place
        )
        questions, chosen = self._chosen(limit)
        documents = self.task.eval_docs_no_media
        self.fingerprint = fingerprint(self.task, self.task.whole, documents)
        self.rows = [self.task.positions[place] for place in chosen]
        self.questions: list[Question] = [questions[place] for place in chosen]
        self.shown = [self.task.positions[p] for p in sorted({*chosen} & {*exhibits(questions)})]
        self._tags = parse_reasoning_tags_config(task_value=self.task.config.reasoning_tags)
        self._judged: dict[tuple[int, str], Judgement] = {}
        _restrict(self.task, self.split, chosen)
        self._documents = self.task.eval_docs_no_media  # read when asked for: they can be long

    def _chosen(self, limit: int | None) -> tuple[list[Question], list[int]]:
        """All questions that can be scored, and the places of the rows that are asked.

        Images are decoded only where they are asked, so a damaged one may call for another choice.
        """
        known: set[int] = set()
        while True:
            rows = self.task.positions
            documents = zip(rows, self.task.eval_docs_no_media, strict=True)
            questions = [self.scorer.question(self.task, d, row) for row, d in documents]
            chosen = choose(questions, limit)
            every = callable(self.task.config.doc_to_messages)  # the fingerprint shows them all
            fresh = range(len(rows)) if every else chosen
            found = self.task.damaged([place for place in fresh if rows[place] not in known])
            if not found:
                return questions, chosen
            known.update(rows[place] for place in fresh)
            self.task.leave_out(found)

    @property
    def turns(self) -> list[int]:
        """When each of `rows` is asked: whole questions in the order in which limits grow, so that
        the questions of an unfinished run are those of a smaller limit.
        """
        place = {question: turn for turn, question in enumerate(_order(self.questions))}
        return [place[question.question_id] for question in self.questions]

    def keep(self, questions: Collection[int]) -> None:
        """Forget all other questions, as if the data set had no others."""
        chosen = [i for i, one in enumerate(self.questions) if one.question_id in questions]
        self.rows = [self.rows[i] for i in chosen]
        self.questions = [self.questions[i] for i in chosen]
        self.shown = [row for row in self.shown if row in set(self.rows)]
        self._judged = {}
        self.__dict__.pop("_position", None)
        _restrict(self.task, self.split, chosen)
        self._documents = self.task.eval_docs_no_media

    @property
    def left_out(self) -> list[dict[str, object]]:
        """The questions that are not asked since they cannot be scored, each with the reason."""
        return faults.listed(self.task.left_out, self.task.ids)

    @property
    def told(self) -> list[str]:
        """What to say of the data besides the scores."""
        found = self.task.left_out
        return [faults.told(self.task.asked, found, self.task.ids)] if found else []

    @cached_property
    def manager(self) -> Any:
        """lmms-eval's index of the task's folder, for its evaluator."""
        return loading.index_of(self.config.lmms_task)

    @property
    def metric(self) -> str:
        """What tables call a sample's score."""
        return self.scorer.shown

    @cached_property
    def shows_images(self) -> bool:
        """Whether prompts can hold images: the task names them, or its data set has some."""
        media = self.task.dataset_no_image[self.split].column_names
        return (
            bool(self.task.config.doc_to_visual)
            or media != self.task.dataset[self.split].column_names
        )

    def marks_context(self) -> bool:
        """Whether the first prompt has an image, a video or a text marked as context."""
        parts = [part for said in self.messages(0) for part in said["content"]]
        own = [part for part in parts if isinstance(part, dict)]
        return any(part["type"] in ("image", "video") or part.get("context") for part in own)

    @property
    def generation(self) -> dict[str, Any]:
        """The generation arguments of every request, as lmms-eval passes them."""
        return dict(self.task.config.generation_kwargs)

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """Score one cell's answers, one text a row, in the order of `rows`."""
        return [self._judge(i, text) for i, text in enumerate(self._filtered(texts))]

    def score(self, row: int, text: str) -> float | None:
        """The score of one answer, also while `evaluate` runs; None where it is not known.

        A row of the data set that is not asked has none.
        """
        if row not in self._position:
            return None
        (filtered,) = self._filtered([text])
        found = float(self._judge(self._position[row], filtered).score)
        return found if isfinite(found) else None

    @cached_property
    def _position(self) -> dict[int, int]:
        return {row: position for position, row in enumerate(self.rows)}

    def aggregate(self, texts: Sequence[str], output: Path) -> float | None:
        """lmms-eval's own score of one cell (for MMBench: circular accuracy in percent), if any.

        Args:
            texts: one answer a row.
            output: folder for the files that lmms-eval's aggregation writes.
        """
        pairs = zip(self._documents, self._filtered(texts), strict=True)
        results = [self._results(document, text)[0] for document, text in pairs]
        return generic.aggregate(self.task, results, output)

    def verify(self, texts: Sequence[str], output: Path) -> float | None:
        """Let lmms-eval aggregate a cell and compare with the scores read here.

        Returns:
            lmms-eval's score; None where what it adds up is not known here.

        Raises:
            RuntimeError: the two disagree, which would make every table wrong.
        """
        ours = self.scorer.total(self.questions, self.judge(texts))
        if ours is None:
            return None
        theirs = self.aggregate(texts, output)
        if theirs is None or abs(ours - theirs) > 1e-6:
            raise RuntimeError(
                f"lmms-eval scores the full cache of {self.name} {theirs} and the samples read "
                f"from its own functions come to {ours}"
            )
        return theirs

    def submit(self, texts: Sequence[str], path: Path) -> Path:
        """Write one cell's answers for the server that knows the right ones."""
        return mmbench_submission.write(self._documents, self._filtered(texts), path)

    def texts(self, position: int) -> Texts:
        """What is known of the text in the prompt of `rows[position]`."""
        return self.scorer.texts(self.task, self._documents[position])

    def messages(self, position: int) -> Any:
        """The prompt of `rows[position]` in lmms-eval's protocol."""
        return self.task.doc_to_messages(self.task.eval_docs[position])

    def image(self, row: int) -> Any:
        """The first image of a row of the whole data set as PIL, None where it shows none."""
        messages = self.messages(self.rows.index(row))
        parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"]]
        return next((part["url"] for part in parts if part["type"] == "image"), None)

    def _filtered(self, texts: Sequence[str]) -> list[str]:
        """Send answers through the task's own filters, as lmms-eval does before scoring."""
        instances = [
            Instance(
                "generate_until", (), 0, {"task": self.name, "doc_id": i, "repeats": 1}, [text]
            )
            for i, text in enumerate(texts)
        ]
        for ensemble in self.task._filters:
            ensemble.apply(instances, self.task.task_docs)
        found = [str(next(iter(one.filtered_resps.values()))) for one in instances]
        return [strip_reasoning_tags(text, self._tags) for text in found] if self._tags else found

    def _judge(self, position: int, text: str) -> Judgement:
        key = (position, text)
        if key not in self._judged:
            document = self._documents[position]
            metrics, spoiled = self._results(document, text)
            judged = self.scorer.judge(document, metrics)
            self._judged[key] = replace(judged, parsed=None, unparsed=True) if spoiled else judged
        return self._judged[key]

    def _results(self, document: Any, text: str) -> tuple[Any, bool]:
        """What the task's functions make of an answer, and whether it stopped them: one that does
        scores as an empty answer, unless that stops them as well.
        """
        process = self.scoring or self.task.process_results
        try:
            return process(document, [text]), False
        except Exception as error:
            try:
                return process(document, [""]), True
            except Exception:  # the task's fault, not the answer's: say the first error
                raise error from None


def choose(questions: Sequence[Question], limit: int | None) -> list[int]:
    """The rows of `limit` whole questions, spread over the data set and nested: a larger limit
    contains the questions of a smaller one.
    """
    order = _order(questions)
    if limit is None or limit >= len(order):
        return list(range(len(questions)))
    kept = set(order[:limit])
    return [row for row, q in enumerate(questions) if q.question_id in kept]


def exhibits(questions: Sequence[Question]) -> list[int]:
    """The first row of each question that the smallest limits keep, so that all limits share it."""
    first: dict[int, int] = {}
    for row, question in enumerate(questions):
        first.setdefault(question.question_id, row)
    return [first[i] for i in _order(questions)[:EXHIBITS]]


def _order(questions: Sequence[Question]) -> list[int]:
    """Question ids in an order that has nothing to do with that of the data set."""
    ids = {q.question_id for q in questions}
    return sorted(ids, key=lambda i: hashlib.sha256(str(i).encode()).digest())


def cli_arguments(output: Path) -> Namespace:
    """What lmms-eval's aggregations read from its command line, with our output folder."""
    return Namespace(output_path=str(output), process_with_media=False, reasoning_tags=None)


def _restrict(task: Any, split: str, rows: Sequence[int]) -> None:
    """Let the task hold only the rows at these places, as if the data set had no others."""
    task.dataset[split] = task.dataset[split].select(rows)
    if task.dataset_no_image is not task.dataset:
        task.dataset_no_image[split] = task.dataset_no_image[split].select(rows)
    task.task_docs = task.dataset[split]


def evaluate(model: Any, benchmark: Benchmark, output: Path, seed: int) -> None:
    """Let lmms-eval send the benchmark's rows to a model object.

    It scores nothing here: answers are scored from the store, and its own writers of spreadsheets
    stop at a control character.
    """
    from lmms_eval.evaluator import simple_evaluate

    output.mkdir(parents=True, exist_ok=True)
    benchmark.scoring = benchmark.task.process_results
    benchmark.task.process_results = lambda document, results: {}
    try:
        simple_evaluate(
            model=model,
            tasks=[benchmark.task],
            task_manager=benchmark.manager,
            batch_size=1,
            bootstrap_iters=0,
            log_samples=False,
            cli_args=cli_arguments(output),
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            process_docs_parallel=1,
        )
    finally:
        del benchmark.task.process_results
        benchmark.scoring = None
