"""A small world of drawn scenes: what is in a picture and where. Knows nothing of models or pixels.

A scene is an 8 x 8 grid of cells. Two to six shapes (and perhaps one digit and one word) occupy
cells of their own; a background pattern and a brightness belong to the whole picture. Within a
scene every shape kind and every colour occurs once, so that questions have one answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

GRID = 8
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "ring")
DIGITS = tuple("0123456789")
WORDS = ("cat", "dog", "sun", "car", "tree", "fish", "book", "milk", "lamp", "ship", "bird", "moon")
SIZES = ("small", "large")
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
BACKGROUNDS = ("plain", "dotted", "striped", "checkered")
BRIGHTNESS = ("bright", "dim", "dark")
COUNTS = ("2", "3", "4", "5", "6")


@dataclass(frozen=True)
class Item:
    """One thing on the grid: `kind` is shape, digit or word; `row`, `col` its top-left cell."""

    kind: str
    value: str
    color: str
    row: int
    col: int
    height: int
    width: int
    jitter: tuple[int, int] = (0, 0)  # pixels

    @property
    def size(self) -> str:
        """large for a shape of 2 x 2 cells, small otherwise."""
        return SIZES[self.kind == "shape" and self.height == 2]

    @property
    def corner(self) -> str:
        """The quarter of the picture that the item lies in."""
        return CORNERS[2 * (self.row >= GRID // 2) + (self.col >= GRID // 2)]

    def cells(self) -> list[int]:
        """Indices of the covered cells, row-major."""
        rows, cols = range(self.row, self.row + self.height), range(self.col, self.col + self.width)
        return [r * GRID + c for r in rows for c in cols]


@dataclass(frozen=True)
class Scene:
    """All that a picture shows."""

    items: tuple[Item, ...]
    background: str
    brightness: str

    def shapes(self) -> list[Item]:
        """The items that are shapes, in drawing order."""
        return [item for item in self.items if item.kind == "shape"]

    def find(self, kind: str) -> Item | None:
        """The first item of a kind, or None."""
        return next((item for item in self.items if item.kind == kind), None)


def place(rng: Random, height: int, width: int, taken: set[int]) -> tuple[int, int] | None:
    """A free top-left cell for a block that lies inside one quarter, or None after 50 tries."""
    half = GRID // 2
    for _ in range(50):
        row = rng.randrange(2) * half + rng.randrange(half - height + 1)
        col = rng.randrange(2) * half + rng.randrange(half - width + 1)
        cells = {(row + r) * GRID + col + c for r in range(height) for c in range(width)}
        if not cells & taken:
            taken |= cells
            return row, col
    return None


def sample_scene(rng: Random) -> Scene:
    """Draw a random scene: 2-6 shapes, exactly one of them large, maybe a digit and a word."""
    n_shapes = rng.randint(2, 6)
    shapes, colors = rng.sample(SHAPES, n_shapes), rng.sample(COLORS, n_shapes)
    plan = [("shape", s, c, 1, 1) for s, c in zip(shapes, colors, strict=True)]
    plan[0] = (*plan[0][:3], 2, 2)
    if rng.random() < 0.5:
        plan.append(("digit", rng.choice(DIGITS), "black", 1, 1))
    if rng.random() < 0.5:
        plan.append(("word", rng.choice(WORDS), "black", 1, 2))
    taken: set[int] = set()
    items = []
    for kind, value, color, height, width in plan:
        found = place(rng, height, width, taken)
        if found is not None:
            jitter = (rng.randint(-1, 1), rng.randint(-1, 1))
            items.append(Item(kind, value, color, *found, height, width, jitter))
    return Scene(tuple(items), rng.choice(BACKGROUNDS), rng.choice(BRIGHTNESS))
