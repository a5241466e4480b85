"""Questions about a wall of many tiles: find one thing among many. Knows no pixels.

The words are those of the short questions. The evidence is one or two cells among up to 2,304, and
the crowd around it has the same words and colours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from harness.drawing import world
from harness.drawing.wall import Placed, Wall
from harness.embedded.questions import COARSE, CROSS, INSTANCE, Draft, Question, finished

_Ask = Callable[[Wall, Random], "Draft | None"]


def _of(wall: Wall, field: str) -> tuple[str, ...]:
    """What the shapes of a wall have, the most frequent first."""
    counts = Counter(getattr(thing.item, field) for thing in wall.things("shape"))
    return tuple(name for name, _ in counts.most_common())


def _pick(rng: Random, things: list[Placed]) -> Placed | None:
    return rng.choice(things) if things else None


def _color(wall: Wall, rng: Random) -> Draft | None:
    thing = _pick(rng, wall.single("value"))
    if thing is None:
        return None
    text = rng.choice(("What is the color of the {}?", "Which color is the {}?"))
    text = text.format(thing.item.value)
    return Draft(text, thing.item.color, _of(wall, "color"), world.COLORS, thing.cells())


def _shape(wall: Wall, rng: Random) -> Draft | None:
    thing = _pick(rng, wall.single("color"))
    if thing is None:
        return None
    text = rng.choice(("Which shape is {}?", "What is the shape that is {}?"))
    text = text.format(thing.item.color)
    return Draft(text, thing.item.value, _of(wall, "value"), world.SHAPES, thing.cells())


def _only(wall: Wall, kind: str) -> Placed | None:
    """The one thing of a kind; None where there are more, or none."""
    things = wall.things(kind)
    return things[0] if len(things) == 1 else None


def _digit(wall: Wall, rng: Random) -> Draft | None:
    thing = _only(wall, "digit")
    text = rng.choice(("What is the digit?", "Which number is the digit?"))
    return None if thing is None else Draft(text, thing.item.value, (), world.DIGITS, thing.cells())


def _word(wall: Wall, rng: Random) -> Draft | None:
    thing = _only(wall, "word")
    text = rng.choice(("What is the word?", "Which text is the word?"))
    return None if thing is None else Draft(text, thing.item.value, (), world.WORDS, thing.cells())


def _existence(wall: Wall, rng: Random) -> Draft | None:
    single = _pick(rng, wall.single("value"))
    absent = [shape for shape in world.SHAPES if shape not in _of(wall, "value")]
    if single is None or not absent:
        return None
    value, answer = rng.choice(((single.item.value, "yes"), (rng.choice(absent), "no")))
    text = rng.choice(("Is there a {}?", "Does the image show a {}?")).format(value)
    return Draft(text, answer, (), ("yes", "no"), single.cells() if answer == "yes" else ())


def _count(wall: Wall, rng: Random) -> Draft | None:
    counts = Counter(thing.item.color for thing in wall.things("shape"))
    asked = [color for color in world.COLORS if str(counts[color]) in world.COUNTS]
    if not asked:
        return None
    color = rng.choice(asked)
    found = [thing for thing in wall.things("shape") if thing.item.color == color]
    near = tuple(str(len(found) + d) for d in (-1, 1) if str(len(found) + d) in world.COUNTS)
    text = f"How many {color} shapes are there?"
    cells = tuple(cell for thing in found for cell in thing.cells())
    return Draft(text, str(len(found)), near, world.COUNTS, cells)


def _large(wall: Wall) -> Placed | None:
    return next((thing for thing in wall.things("shape") if thing.item.size == "large"), None)


def _largest_shape(wall: Wall, rng: Random) -> Draft | None:
    thing = _large(wall)
    text = rng.choice(("Which shape is the largest?", "What is the shape that is largest?"))
    return (
        None
        if thing is None
        else Draft(text, thing.item.value, _of(wall, "value"), world.SHAPES, thing.cells())
    )


def _largest_color(wall: Wall, rng: Random) -> Draft | None:
    thing = _large(wall)
    text = rng.choice(("Which color is the largest?", "What is the color of the largest?"))
    return (
        None
        if thing is None
        else Draft(text, thing.item.color, _of(wall, "color"), world.COLORS, thing.cells())
    )


def _beside(wall: Wall, rng: Random, field: str, text: str, pool: tuple[str, ...]) -> Draft | None:
    """Two steps: find the word, then what stands right of it."""
    pairs = [(sign, wall.right_of(sign)) for sign in wall.things("word")]
    known = [(sign, shape) for sign, shape in pairs if shape is not None]
    if len(known) < 2:
        return None
    sign, shape = rng.choice(known)
    near = tuple(getattr(other.item, field) for _, other in known)
    answer = getattr(shape.item, field)
    return Draft(text.format(sign.item.value), answer, near, pool, shape.cells())


def _beside_color(wall: Wall, rng: Random) -> Draft | None:
    return _beside(wall, rng, "color", "Which color is nearest to the word {}?", world.COLORS)


def _beside_shape(wall: Wall, rng: Random) -> Draft | None:
    return _beside(wall, rng, "value", "Which shape is nearest to the word {}?", world.SHAPES)


def _background(wall: Wall, rng: Random) -> Draft:
    text = rng.choice(("What is the background?", "Which pattern is the background?"))
    return Draft(text, wall.tiles[0].background, (), world.BACKGROUNDS)


def _brightness(wall: Wall, rng: Random) -> Draft:
    text = rng.choice(("How bright is the image?", "What is the light of the image?"))
    return Draft(text, wall.tiles[0].brightness, (), world.BRIGHTNESS)


KINDS: dict[str, tuple[_Ask, str, str]] = {
    "color": (_color, "attribute_recognition", INSTANCE),
    "shape": (_shape, "attribute_recognition", INSTANCE),
    "digit": (_digit, "ocr", INSTANCE),
    "word": (_word, "ocr", INSTANCE),
    "count": (_count, "object_localization", INSTANCE),
    "existence": (_existence, "object_localization", INSTANCE),
    "largest_shape": (_largest_shape, "attribute_comparison", CROSS),
    "largest_color": (_largest_color, "attribute_comparison", CROSS),
    "beside_color": (_beside_color, "spatial_relationship", CROSS),
    "beside_shape": (_beside_shape, "spatial_relationship", CROSS),
    "background": (_background, "image_style", COARSE),
    "brightness": (_brightness, "image_quality", COARSE),
}
# The embedded model has not learned to look for a word and then for what is beside it.
ASKED = tuple(kind for kind in KINDS if not kind.startswith("beside"))


def ask(wall: Wall, kind: str, rng: Random) -> Question | None:
    """A random question of a kind about a wall; None if the wall has nothing to ask it of."""
    make, category, l2_category = KINDS[kind]
    draft = make(wall, rng)
    if draft is None:
        return None
    return finished(draft, kind, category, l2_category, rng)
