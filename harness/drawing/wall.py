"""Large pictures of many tiles, each a scene of its own. Knows nothing of models or pixels.

A wall is what a model with anyres crops sees of a large picture: up to 6 x 6 tiles of 8 x 8 cells
with one to two things in each. Most of it is a crowd whose words and colours repeat. Four shapes
can be told from it: two have a shape that no other has, two a colour that no other has. One shape
is large. Half of the walls hold one digit and one word, the others many words, each of them left of
a shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from harness.drawing import world
from harness.drawing.world import GRID, Item, Scene

CELLS = GRID * GRID
SIDES = (1, 2, 3, 4, 5, 6)  # tiles across


@dataclass(frozen=True)
class Placed:
    """A thing and the tile that it lies in."""

    item: Item
    tile: int

    def cells(self) -> tuple[int, ...]:
        """Indices of the covered cells, tile after tile, row-major within a tile."""
        return tuple(self.tile * CELLS + cell for cell in self.item.cells())


@dataclass(frozen=True)
class Wall:
    """All that a large picture shows, tile after tile, row-major; `across` tiles in a row."""

    tiles: tuple[Scene, ...]
    across: int

    def things(self, kind: str) -> list[Placed]:
        """All things of a kind: shape, digit or word."""
        tiles = enumerate(self.tiles)
        return [
            Placed(item, at) for at, scene in tiles for item in scene.items if item.kind == kind
        ]

    def single(self, field: str) -> list[Placed]:
        """The shapes whose `value` or `color` no other shape has."""
        shapes = self.things("shape")
        named = [getattr(thing.item, field) for thing in shapes]
        return [t for t, name in zip(shapes, named, strict=True) if named.count(name) == 1]

    def right_of(self, sign: Placed) -> Placed | None:
        """The shape directly right of a word."""
        at = (sign.tile, sign.item.row, sign.item.col + sign.item.width)
        shapes = self.things("shape")
        return next((s for s in shapes if (s.tile, s.item.row, s.item.col) == at), None)


Plan = tuple[str, str, str, int]  # of a thing: kind, value, colour, cells across and down


class Sheet:
    """Tiles that fill up."""

    def __init__(self, rng: Random, size: int) -> None:
        self.rng = rng
        self.tiles: list[list[Item]] = [[] for _ in range(size)]
        self.taken: list[set[int]] = [set() for _ in range(size)]

    def put(self, tile: int, height: int, *things: Plan) -> None:
        """Draw things side by side on a free place, or nothing where there is none."""
        width = sum(2 if kind == "word" else across for kind, _, _, across in things)
        found = world.place(self.rng, height, width, self.taken[tile])
        if found is None:
            return
        row, col = found
        for kind, value, color, across in things:
            broad = 2 if kind == "word" else across
            jitter = (self.rng.randint(-1, 1), self.rng.randint(-1, 1))
            self.tiles[tile].append(Item(kind, value, color, row, col, across, broad, jitter))
            col += broad


def _crowd(rng: Random, count: int) -> list[Plan]:
    """Shapes of a wall: the first four can be told apart; one shape and one colour are left out."""
    shapes = rng.sample(world.SHAPES, len(world.SHAPES))
    colors = rng.sample(world.COLORS, len(world.COLORS))
    common, paints = shapes[3:], colors[3:]
    plan: list[Plan] = [("shape", shape, rng.choice(paints), 1) for shape in shapes[:2]]
    plan += [("shape", rng.choice(common), color, 1) for color in colors[:2]]
    left = range(count - len(plan))
    return plan + [("shape", rng.choice(common), rng.choice(paints), 1) for _ in left]


def sample_wall(rng: Random, across: int) -> Wall:
    """Draw a random wall of `across` x `across` tiles.

    Raises:
        ValueError: `across` is not one of SIDES.
    """
    if across not in SIDES:
        raise ValueError(f"A wall has {SIDES[0]} to {SIDES[-1]} tiles across, not {across}.")
    size = across * across
    sheet, others = Sheet(rng, size), list(range(size))
    shapes = _crowd(rng, max(5, round(size * rng.uniform(0.6, 1.6))))
    rng.shuffle(shapes)
    kind, value, color, _ = shapes.pop()
    sheet.put(rng.choice(others), 2, (kind, value, color, 2))
    if size > 1 and rng.random() < 0.5:
        signs = rng.sample(others, min(len(shapes), size, rng.randint(2, 8)))
        for tile, word in zip(signs, rng.sample(world.WORDS, len(signs)), strict=True):
            sheet.put(tile, 1, ("word", word, "black", 1), shapes.pop())
    else:
        sheet.put(rng.choice(others), 1, ("digit", rng.choice(world.DIGITS), "black", 1))
        sheet.put(rng.choice(others), 1, ("word", rng.choice(world.WORDS), "black", 1))
    for each in shapes:
        sheet.put(rng.choice(others), 1, each)
    paper, light = rng.choice(world.BACKGROUNDS), rng.choice(world.BRIGHTNESS)
    return Wall(tuple(Scene(tuple(items), paper, light) for items in sheet.tiles), across)
