"""Multiple-choice questions about a scene, under MMBench's ability names. Knows no pixels.

Every question ends in `?`, its options are single words, and its wrong options are, where they can
be, true of something else in the picture: seeing what is there is not enough, one has to bind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from harness.drawing import world
from harness.drawing.world import Item, Scene

INSTANCE = "finegrained_perception (instance-level)"
CROSS = "finegrained_perception (cross-instance)"
COARSE = "coarse_perception"


@dataclass(frozen=True)
class Question:
    """One question; `cells` are the grid cells that hold its answer (empty: the whole picture)."""

    kind: str
    category: str
    l2_category: str
    text: str
    options: tuple[str, ...]
    answer: str
    hint: str | None
    cells: tuple[int, ...]


@dataclass(frozen=True)
class Draft:
    """A question before its options are drawn."""

    text: str
    answer: str
    near: tuple[str, ...]  # wrong answers that are true of something else in the picture
    pool: tuple[str, ...]  # every possible answer
    cells: tuple[int, ...] = ()


_Ask = Callable[[Scene, Random], "Draft | None"]


def _values(items: list[Item], field: str) -> tuple[str, ...]:
    return tuple(getattr(item, field) for item in items)


def _color(scene: Scene, rng: Random) -> Draft:
    item = rng.choice(scene.shapes())
    text = rng.choice(("What is the color of the {}?", "Which color is the {}?")).format(item.value)
    return Draft(
        text, item.color, _values(scene.shapes(), "color"), world.COLORS, tuple(item.cells())
    )


def _shape(scene: Scene, rng: Random) -> Draft:
    item = rng.choice(scene.shapes())
    text = rng.choice(("Which shape is {}?", "What is the shape that is {}?")).format(item.color)
    return Draft(
        text, item.value, _values(scene.shapes(), "value"), world.SHAPES, tuple(item.cells())
    )


def _digit(scene: Scene, rng: Random) -> Draft | None:
    item = scene.find("digit")
    text = rng.choice(("What is the digit?", "Which number is the digit?"))
    if item is None:
        return None
    return Draft(text, item.value, (), world.DIGITS, tuple(item.cells()))


def _word(scene: Scene, rng: Random) -> Draft | None:
    item = scene.find("word")
    text = rng.choice(("What is the word?", "Which text is the word?"))
    if item is None:
        return None
    return Draft(text, item.value, (), world.WORDS, tuple(item.cells()))


def _location(scene: Scene, rng: Random) -> Draft:
    item = rng.choice(scene.items)
    name = item.value if item.kind == "shape" else item.kind
    text = rng.choice(("Where is the {}?", "Which corner is nearest to the {}?")).format(name)
    return Draft(text, item.corner, (), world.CORNERS, tuple(item.cells()))


def _count(scene: Scene, rng: Random) -> Draft:
    count = len(scene.shapes())
    text = rng.choice(("How many shapes are there?", "What is the number of shapes?"))
    near = tuple(str(count + d) for d in (-1, 1) if str(count + d) in world.COUNTS)
    return Draft(text, str(count), near, world.COUNTS)


def _existence(scene: Scene, rng: Random) -> Draft:
    present = _values(scene.shapes(), "value")
    absent = [shape for shape in world.SHAPES if shape not in present]
    value, answer = rng.choice(((rng.choice(present), "yes"), (rng.choice(absent), "no")))
    cells = tuple(scene.shapes()[present.index(value)].cells()) if answer == "yes" else ()
    text = rng.choice(("Is there a {}?", "Does the image show a {}?")).format(value)
    return Draft(text, answer, (), ("yes", "no"), cells)


def _largest_shape(scene: Scene, rng: Random) -> Draft:
    item = next(item for item in scene.shapes() if item.size == "large")
    text = rng.choice(("Which shape is the largest?", "What is the shape that is largest?"))
    return Draft(
        text, item.value, _values(scene.shapes(), "value"), world.SHAPES, tuple(item.cells())
    )


def _largest_color(scene: Scene, rng: Random) -> Draft:
    item = next(item for item in scene.shapes() if item.size == "large")
    text = rng.choice(("Which color is the largest?", "What is the color of the largest?"))
    return Draft(
        text, item.color, _values(scene.shapes(), "color"), world.COLORS, tuple(item.cells())
    )


def _relation(scene: Scene, rng: Random) -> Draft | None:
    """Two shapes in different halves of the picture, so that the answer is plain to see."""
    first, second = rng.sample(scene.shapes(), 2)
    vertical, names = rng.choice(((False, ("left", "right")), (True, ("above", "below"))))
    place = [(i.row if vertical else i.col) >= world.GRID // 2 for i in (first, second)]
    if place[0] == place[1]:
        return None
    text = f"{names[0].capitalize()} or {names[1]} the {second.value}, where is the {first.value}?"
    return Draft(text, names[place[0]], (), names, tuple(first.cells()))


def _background(scene: Scene, rng: Random) -> Draft:
    text = rng.choice(("What is the background?", "Which pattern is the background?"))
    return Draft(text, scene.background, (), world.BACKGROUNDS)


def _brightness(scene: Scene, rng: Random) -> Draft:
    text = rng.choice(("How bright is the image?", "What is the light of the image?"))
    return Draft(text, scene.brightness, (), world.BRIGHTNESS)


KINDS: dict[str, tuple[_Ask, str, str]] = {
    "color": (_color, "attribute_recognition", INSTANCE),
    "shape": (_shape, "attribute_recognition", INSTANCE),
    "digit": (_digit, "ocr", INSTANCE),
    "word": (_word, "ocr", INSTANCE),
    "location": (_location, "object_localization", INSTANCE),
    "count": (_count, "object_localization", INSTANCE),
    "existence": (_existence, "object_localization", INSTANCE),
    "largest_shape": (_largest_shape, "attribute_comparison", CROSS),
    "largest_color": (_largest_color, "attribute_comparison", CROSS),
    "relation": (_relation, "spatial_relationship", CROSS),
    "background": (_background, "image_style", COARSE),
    "brightness": (_brightness, "image_quality", COARSE),
}
HINTS = (
    "The image shows some shapes.",
    "Look at the image.",
    "The shapes have one color each.",
    "There is one answer.",
)


def options(draft: Draft, rng: Random) -> tuple[str, ...]:
    """The answer among up to three wrong ones, the near ones first, in random order."""
    near = [v for v in dict.fromkeys(draft.near) if v != draft.answer]
    far = [v for v in draft.pool if v != draft.answer and v not in near]
    wanted = 3 if rng.random() < 0.8 else rng.randint(1, 2)
    wrong = (rng.sample(near, len(near)) + rng.sample(far, len(far)))[:wanted]
    options = [draft.answer, *wrong]
    rng.shuffle(options)
    return tuple(options)


def ask(scene: Scene, kind: str, rng: Random) -> Question | None:
    """A random question of a kind about a scene; None if the scene has nothing to ask it of."""
    make, category, l2_category = KINDS[kind]
    draft = make(scene, rng)
    if draft is None:
        return None
    return finished(draft, kind, category, l2_category, rng)


def finished(draft: Draft, kind: str, category: str, l2_category: str, rng: Random) -> Question:
    """The question of a draft: perhaps a hint before it, and its options."""
    hint = rng.choice(HINTS) if rng.random() < 0.2 else None
    return Question(
        kind,
        category,
        l2_category,
        draft.text,
        options(draft, rng),
        draft.answer,
        hint,
        draft.cells,
    )


def prompt(question: Question) -> str:
    """The text that lmms-eval's MMBench task puts beside the image."""
    head = f"{question.hint} {question.text}" if question.hint else question.text
    lines = [f"{letter}. {text}" for letter, text in zip("ABCD", question.options, strict=False)]
    options = "\n".join(["There are several options:", *lines])
    return f"{head} {options}\n\nAnswer with the option's letter from the given choices directly."
