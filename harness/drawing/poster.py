"""Pictures to be read out: many things on up to 6 x 6 tiles, no two alike. Knows no pixels.

Every shape, colour, digit and word occurs at most once, so each thing can be told from all others.
"""

from __future__ import annotations

from random import Random

from harness.drawing import world
from harness.drawing.wall import Placed, Plan, Sheet, Wall
from harness.drawing.world import Scene


def sample_poster(rng: Random, across: int, shapes: int, digits: int, words: int) -> Wall:
    """Draw a random poster of `across` x `across` tiles with so many things of each kind.

    The first shape is large. What finds no room in its tile is left out.

    Raises:
        ValueError: more things of a kind than there are different ones.
    """
    found = zip(rng.sample(world.SHAPES, shapes), rng.sample(world.COLORS, shapes), strict=True)
    plan: list[Plan] = [("shape", *each, 1 if n else 2) for n, each in enumerate(found)]
    rest: list[Plan] = [("digit", each, "black", 1) for each in rng.sample(world.DIGITS, digits)]
    rest += [("word", each, "black", 1) for each in rng.sample(world.WORDS, words)]
    sheet = Sheet(rng, across * across)
    for thing in plan + rest:
        sheet.put(rng.randrange(across * across), thing[3], thing)
    paper, light = rng.choice(world.BACKGROUNDS), rng.choice(world.BRIGHTNESS)
    return Wall(tuple(Scene(tuple(items), paper, light) for items in sheet.tiles), across)


def read_out(wall: Wall) -> list[Placed]:
    """All things, tile after tile, row by row within a tile: in the order of their first cells."""
    things = [thing for kind in ("shape", "digit", "word") for thing in wall.things(kind)]
    return sorted(things, key=lambda thing: thing.cells()[0])


def said(thing: Placed) -> tuple[str, ...]:
    """What a thing is called: colour and shape, or the digit or word itself."""
    item = thing.item
    return (item.color, item.value) if item.kind == "shape" else (item.value,)
