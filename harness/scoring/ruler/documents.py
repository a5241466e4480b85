"""RULER's question answering: the documents that answer a question among others.

Definition: NVIDIA/RULER scripts/data/synthetic/qa.py at c3f5e3b, over the published files of SQuAD
2.0 (dev) and HotpotQA (dev, distractor).
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from harness.errors import UserError
from harness.scoring.ruler.lengths import Sample

ORDER = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words."
)
HEAD = f"{ORDER}\n\nThe following are given documents.\n\n"
TAIL = f"\n\n{ORDER}\n\nQuestion: {{query}}"
PREFIX = " Answer:"


@dataclass(frozen=True)
class Question:
    """A question, its answers, the documents it needs and those of the same article."""

    query: str
    answers: list[str]
    needed: list[int]
    related: list[int]


@dataclass(frozen=True)
class Documents:
    """The task over a data set: `size` documents a sample, question by question."""

    questions: list[Question]
    documents: list[str]
    seed: int = 42
    tokens = 32
    least = 1

    def draw(self, rng: Random, index: int, size: int) -> Sample:
        """Question number `index` in `size` documents, or as many as it needs."""
        question = self.questions[index]
        shown = self._choose(question, rng, max(size, len(question.needed)))
        Random(self.seed).shuffle(shown)  # the same order in every sample, as published
        context = HEAD + "\n\n".join(
            f"Document {number}:\n{text}" for number, text in enumerate(shown, 1)
        )
        tail = TAIL.format(query=question.query)
        return Sample(context + tail, len(context), question.answers, PREFIX)

    def _choose(self, question: Question, rng: Random, size: int) -> list[str]:
        total = len(self.documents)
        if size >= total:
            return (self.documents * -(-size // total))[:size]
        needed, related = question.needed, question.related
        free = size - len(needed)
        if free <= len(related):
            chosen = needed + rng.sample(related, free)
        else:
            own = {*needed, *related}
            others = [number for number in range(total) if number not in own]
            chosen = needed + related + rng.sample(others, min(free - len(related), len(others)))
        return [self.documents[number] for number in chosen]


def squad(content: bytes, seed: int = 42) -> Documents:
    """The answerable questions of a SQuAD 2.0 file; UserError where it is not one."""
    articles = _parsed(content, "squad", _squad_articles)
    places, documents = _numbers(text for article in articles for text, _ in article)
    questions = [
        Question(
            query,
            answers,
            [places[text]],
            [places[other] for other, _ in article if other != text],
        )
        for article in articles
        for text, asked in article
        for query, answers in asked
    ]
    return Documents(questions, documents, seed)


def hotpotqa(content: bytes, seed: int = 42) -> Documents:
    """The questions of a HotpotQA file, each with the ten documents given with it."""
    rows = _parsed(content, "hotpotqa", _hotpotqa_rows)
    places, documents = _numbers(text for _, _, texts in rows for text in texts)
    questions = [
        Question(query, [answer], [places[text] for text in texts], [])
        for query, answer, texts in rows
    ]
    return Documents(questions, documents, seed)


def _squad_articles(data: Any) -> list[list[tuple[str, list[tuple[str, list[str]]]]]]:
    """Articles, their paragraphs, the answerable questions of each with its answers."""
    return [
        [
            (
                paragraph["context"],
                [
                    (asked["question"], [answer["text"] for answer in asked["answers"]])
                    for asked in paragraph["qas"]
                    if not asked["is_impossible"]
                ],
            )
            for paragraph in article["paragraphs"]
        ]
        for article in data["data"]
    ]


def _hotpotqa_rows(data: Any) -> list[tuple[str, str, list[str]]]:
    """Question, answer and the documents, each its title and its sentences."""
    return [
        (row["question"], row["answer"], [f"{t}\n{''.join(parts)}" for t, parts in row["context"]])
        for row in data
    ]


def _parsed(content: bytes, name: str, read: Callable[[Any], list[Any]]) -> list[Any]:
    try:
        return read(json.loads(content))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The file of sources.{name} is not what its publisher gives ({error!r}): use the "
            "original JSON."
        ) from error


def _numbers(texts: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    documents = sorted(set(texts))
    return {text: number for number, text in enumerate(documents)}, documents
