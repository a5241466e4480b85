"""Solves RULER's prompts from their text alone, without anything that drew them.

Each solver returns all answers that the prompt supports, so that a second answer shows.
"""

import re
from collections import Counter

NEEDLE = re.compile(r"One of the special magic (\w+) for (.+?) is: (\S+)\.(?=\s|$)")


def needles(context: str, question: str) -> list[str]:
    asked = re.search(r"What (?:is|are all) the special magic \w+ for (.+) mentioned", question)
    assert asked is not None
    keys = re.split(r", and |, ", asked[1])
    return [value for _, key, value in NEEDLE.findall(context) if key in keys]


def variables(context: str, question: str) -> list[str]:
    asked = re.search(r"assigned the value (\d+) in the text above", question)
    assert asked is not None
    value: dict[str, str] = {}
    for name, given in re.findall(r"VAR ([A-Z]+) = (\d+|VAR [A-Z]+)", context):
        value[name] = given if given.isdigit() else value[given.removeprefix("VAR ")]
    return [name for name, given in value.items() if given == asked[1]]


def common_words(context: str, question: str) -> list[str]:
    assert "10 most common" in question
    listed = context[context.index("appear most often.\n") + len("appear most often.\n") :]
    numbered = re.findall(r"(\d+)\. (.+?)(?= \d+\. |$)", listed)
    assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1))
    return _most([word for _, word in numbered], 10)


def frequent_words(context: str, question: str) -> list[str]:
    assert "three most frequently" in question
    coded = context[context.index("coded words. ") + len("coded words. ") :].split(" ")
    return _most([word for word in coded if word != "..."], 3)


def _most(words: list[str], count: int) -> list[str]:
    """The most frequent words; more than `count` of them where the last place is shared."""
    numbers = Counter(words)
    last = sorted(numbers.values(), reverse=True)[count - 1]
    return [word for word, number in numbers.items() if number >= last]
