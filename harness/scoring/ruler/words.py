"""The words that RULER draws from, those of the package wonderwords; knows nothing of the tasks."""

from functools import cache
from random import Random

from wonderwords import RandomWord


@cache
def listed(kind: str) -> list[str]:
    """All words of a kind: noun, adjective or verb."""
    return list(RandomWord().filter(include_categories=[kind]))


@cache
def all_words() -> list[str]:
    """Nouns, adjectives and verbs, each once, sorted."""
    return sorted({*listed("noun"), *listed("adjective"), *listed("verb")})


def pair(rng: Random) -> str:
    """An adjective and a noun, joined by a hyphen: one of about six million."""
    return f"{rng.choice(listed('adjective'))}-{rng.choice(listed('noun'))}"
