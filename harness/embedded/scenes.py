"""Pictures to be read out: what they show, and the question whose answer names all of it.

Knows no models and no pixels.
"""

from __future__ import annotations

from random import Random

from harness.drawing.poster import sample_poster
from harness.drawing.wall import Wall

QUESTION = "Please give me all the image shows, one after the other."
ACROSS = {"short": 1, "middle": 3, "long": 6}  # tiles of a side, 64 image tokens each
FEWEST = {"shapes": 5, "digits": 2, "words": 2}
MOST = {
    1: {"shapes": 8, "digits": 4, "words": 4},
    3: {"shapes": 8, "digits": 6, "words": 6},
    6: {"shapes": 8, "digits": 8, "words": 8},
}


def draw(rng: Random, across: int) -> Wall:
    """A picture of a benchmark: 14 to 32 words to be said of it, fewer where room was short."""
    counts = {kind: rng.randint(FEWEST[kind], most) for kind, most in MOST[across].items()}
    return sample_poster(rng, across, **counts)
