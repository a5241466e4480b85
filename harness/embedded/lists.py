"""Texts with a list of words hidden in noise, and questions whose answers are the list once more.

An answer has as many words as the list. Knows no models and no tokenizer but the rule that cuts
words.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from harness.embedded.haystacks import Query, Text, fit, weave
from harness.embedded.words import VALUES

BEFORE = "Memorize the words hidden in the following text.\n"
LINE = "The words are: {}."
ASKED = {
    "copy": "Please give me all the words again.",
    "reverse": "Please give me all the words from the final one back.",
}
LENGTHS = {20: 128, 40: 256, 60: 384}  # tokens of a prompt and its answer, by words of its list


def answer(kind: str, words: Sequence[str]) -> tuple[str, ...]:
    """What a list's words become: as they are, or from the last to the first."""
    return tuple({"copy": words, "reverse": words[::-1]}[kind])


def draw(rng: Random, words: int, length: int, depth: float | None = None) -> Text:
    """A list of different words in a line of its own in noise, with a question of each kind.

    length: tokens of the longest prompt with its answer. depth: the line's in the noise, else
    random.
    """
    said = rng.sample(VALUES, words)
    line = LINE.format(" ".join(said))
    placed = [(rng.random() if depth is None else depth, line)]
    queries = tuple(
        Query("", asked, f"\n{asked}", "", answer(kind, said)) for kind, asked in ASKED.items()
    )

    def make(room: int) -> Text:
        context = weave(placed, room) if room >= 0 else ""
        return Text("list", BEFORE + context, context, queries)

    return fit("list", length, make)
