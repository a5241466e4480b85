"""The score of a list that is said again, against values worked out by hand and by search."""

from itertools import combinations
from random import Random

import pytest

from harness.scoring.lists import common, process_results

LIST = ["copper", "silver", "marble", "velvet"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("copper silver marble velvet", 1.0),
        (" copper\nsilver  marble velvet\n", 1.0),
        ("copper silver velvet", 3 / 4),  # one is lost, the rest still counts
        ("velvet marble silver copper", 1 / 4),  # backwards: one word stands in order
        ("copper copper silver marble velvet", 4 / 5),  # said twice
        ("copper silver marble velvet amber amber amber amber", 4 / 8),  # went on
        ("silver copper marble velvet", 3 / 4),  # two changed places
        ("Copper silvery", 0.0),
        ("", 0.0),
    ],
)
def test_by_hand(said: str, expected: float) -> None:
    assert process_results({"outputs": LIST}, [said]) == {"words_in_order": pytest.approx(expected)}


def test_the_subsequence_is_the_longest_of_all() -> None:
    rng = Random(0)
    for _ in range(60):
        one, other = (rng.choices("abcd", k=rng.randint(0, 7)) for _ in range(2))
        parts = [
            {pick for size in range(len(words) + 1) for pick in combinations(words, size)}
            for words in (one, other)
        ]
        assert common(one, other) == max(map(len, parts[0] & parts[1]))
