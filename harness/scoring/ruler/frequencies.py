"""RULER's two counting tasks: the ten common words of a list, the three most frequent coded words.

Definitions: NVIDIA/RULER scripts/data/synthetic/common_words_extraction.py and
freq_words_extraction.py at c3f5e3b. Where a list needs more words than wonderwords has, about 8,200
or 120,000 tokens, hyphenated pairs join in; the published code changes to a word list of 8.6 MB.
"""

import math
import string
from dataclasses import dataclass
from random import Random

from harness.scoring.ruler.lengths import Sample
from harness.scoring.ruler.words import all_words, pair

COMMON = 10
SHORT = 4096  # tokens; below, lists are shorter
CWE_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
CWE_TAIL = "\nQuestion: What are the 10 most common words in the above list?"
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
FWE_HEAD = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. "
)
FWE_TAIL = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text?"
)
FWE_PREFIX = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)


@dataclass(frozen=True)
class CommonWords:
    """cwe: common words 30 times, others 3 times (6 and 1 in short contexts), after an example."""

    max_length: int
    seed: int = 42
    tokens = 120
    least = COMMON + 1

    def draw(self, rng: Random, index: int, size: int) -> Sample:
        """A list of `size` different words."""
        short = self.max_length < SHORT
        example, answers = self._list(rng, *((20, 3, 1) if short else (40, 10, 3)))
        listed, common = self._list(rng, size, *((6, 1) if short else (30, 3)))
        solved = f"{CWE_HEAD}{example}{CWE_TAIL}{CWE_PREFIX} {_numbered(answers)}\n"
        context = solved + CWE_HEAD + listed
        return Sample(context + CWE_TAIL, len(context), common, CWE_PREFIX)

    def _list(self, rng: Random, size: int, often: int, seldom: int) -> tuple[str, list[str]]:
        plain = all_words()
        drawn = rng.sample(plain, min(size, len(plain)))
        extra: dict[str, None] = {}
        while len(drawn) + len(extra) < size:
            extra[pair(rng)] = None
        drawn += extra
        listed = drawn[:COMMON] * often + drawn[COMMON:] * seldom
        Random(self.seed).shuffle(listed)  # the same places in every sample, as published
        return _numbered(listed), drawn[:COMMON]


@dataclass(frozen=True)
class FrequentWords:
    """fwe: words of six random letters, the k-th most frequent in proportion to 1 / k squared."""

    max_length: int
    seed: int = 42
    tokens = 50
    least = 100  # words: the third, fourth and fifth most frequent then differ in number

    def draw(self, rng: Random, index: int, size: int) -> Sample:
        """A text of about `size` words; the most frequent one is dots."""
        vocabulary: dict[str, None] = {}
        while len(vocabulary) < max(5, (self.max_length - self.tokens) // 50):
            vocabulary["".join(rng.choices(string.ascii_lowercase, k=6))] = None
        ranked = ["...", *list(vocabulary)[1:]]
        scale = size / (math.pi**2 / 6)  # over zeta(2)
        words = [w for k, word in enumerate(ranked, 1) for w in [word] * int(scale / k**2)]
        Random(self.seed).shuffle(words)
        context = FWE_HEAD + " ".join(words)
        return Sample(context + FWE_TAIL, len(context), ranked[1:4], FWE_PREFIX)


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
