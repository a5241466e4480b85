"""Noise with sentences in it, and what a long text with its questions consists of.

Knows no tasks, no models and no tokenizer but the rule that cuts words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.embedded.words import pieces

NOISE = (  # RULER's repeated haystack, a sentence an entry
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
WRAPPING = 5  # tokens of the chat template: <s> USER : and ASSISTANT :


@dataclass(frozen=True)
class Query:
    """One question about a text.

    key: the word it asks about. input: the question alone, LongBench's column. after: what follows
    the context in the user's message. prefix: how the assistant's turn begins, may be empty.
    outputs: the answer's words. ordered: whether they must be said in this order.
    """

    key: str
    input: str
    after: str
    prefix: str
    outputs: tuple[str, ...]
    ordered: bool = True


@dataclass(frozen=True)
class Text:
    """A long text; `before` is the user's message up to its end, `context` the text alone.

    wrapped: whether the chat template goes around it.
    """

    kind: str
    before: str
    context: str
    queries: tuple[Query, ...]
    wrapped: bool = True
    classes: tuple[str, ...] = ()

    def tokens(self, query: Query) -> int:
        """Tokens of the prompt and the answer with its end."""
        said = len(pieces(self.before + query.after)) + len(pieces(query.prefix))
        return said + WRAPPING * self.wrapped + len(query.outputs) + 1


def weave(sentences: Sequence[tuple[float, str]], room: int) -> str:
    """At most `room` tokens of noise and the sentences, each at its depth in [0, 1] of the noise.

    Raises:
        ValueError: the sentences alone need more than `room` tokens.
    """
    left = room - sum(len(pieces(text)) for _, text in sentences)
    if left < 0:
        raise ValueError(f"{room} tokens are too few for {len(sentences)} sentences; add {-left}")
    noise: list[str] = []
    while (size := len(pieces(NOISE[len(noise) % len(NOISE)]))) <= left:
        noise.append(NOISE[len(noise) % len(NOISE)])
        left -= size
    out: list[str] = []
    placed = sorted(sentences, key=lambda pair: pair[0])
    for index in range(len(noise) + 1):
        while placed and round(placed[0][0] * len(noise)) <= index:
            out.append(placed.pop(0)[1])
        out += noise[index : index + 1]
    return " ".join(out)


def fit(kind: str, length: int, make: Callable[[int], Text]) -> Text:
    """The text that `make` writes when its context may have what templates and answers leave."""
    empty = make(-1)
    return make(length - max(empty.tokens(query) for query in empty.queries))
