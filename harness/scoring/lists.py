"""How much of a list an answer says in order: the longest common subsequence of their words.

A lost word costs one word, and what follows it still counts. Knows a document's `outputs`, the
list's words, and nothing of how it came about.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """words_in_order: words said in the list's order, over the longer of the answer and the list.

    The subsequence is ROUGE-L's (Lin 2004). Dividing by the longer one makes words that do not
    belong cost as much as words that are missing.

    Args:
        doc: has `outputs`, the list's words in order, at least one.
        results: the answer as its only element.
    """
    wanted, said = [str(word) for word in doc["outputs"]], results[0].split()
    return {"words_in_order": common(wanted, said) / max(len(wanted), len(said))}


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest sequence of words that both have in this order, gaps allowed."""
    best = [0] * (len(other) + 1)  # of the words of `one` so far and the first j of `other`
    for word in one:
        before = best[:]
        for j, found in enumerate(other, 1):
            best[j] = before[j - 1] + 1 if word == found else max(before[j], best[j - 1])
    return best[-1]
