"""The visual needle: a question about one of many pictures, all in one prompt.

In the manner of MM-NIAH (arXiv 2406.07230), with scenes drawn here. Two kinds of question take
turns: in which image something is, and which digit a given image shows.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from datasets import Features, Image, List, Value

from harness.drawing.render import render
from harness.drawing.world import Scene, sample_scene
from harness.scoring.needle import grid
from harness.scoring.ruler.lengths import generator

WHICH = "In which image is the {color} {shape}? Answer with the number of the image."
DIGIT = "What is the digit in image {number}? Answer with the digit."
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip
AROUND = ("the", "a", "it", "is", "in", "image", "picture", "number", "no", "digit", "answer")


class VisualNeedle:
    """The generator `visual_needle`: options length (images), depths, samples (a depth)."""

    version = 1
    features = Features(
        {
            "index": Value("int64"),
            "images": List(Image()),
            "question": Value("string"),
            "answer": Value("string"),
            "kind": Value("string"),  # which or digit
            "length": Value("int64"),  # images
            "depth": Value("float64"),  # percent: 0 is the first image, 100 the last
        }
    )
    defaults: Mapping[str, Any] = {"depths": grid.DEPTHS, "samples": 2}
    advice = ""

    def needs(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Nothing: all is drawn."""
        return ()

    def total(self, options: Mapping[str, Any]) -> int:
        """A row a sample and depth."""
        return len(grid.depths(options)) * int(options["samples"])

    def rows(
        self, options: Mapping[str, Any], tokenizer: Any, seed: int
    ) -> Iterator[dict[str, Any]]:
        """The rows of a number of images, depth by depth; the tokenizer is not used."""
        depths, samples = grid.depths(options), int(options["samples"])
        for index in range(self.total(options)):
            depth, length = depths[index // samples], int(options["length"])
            place = round(depth / 100 * (length - 1))
            rng = generator("visual_needle", seed, f"{length}/{index}")
            ask = (_which, _digit)[index % samples % 2]
            scenes, question, answer = ask(rng, place, length)
            yield {
                "index": index,
                "images": [{"bytes": _png(scene), "path": None} for scene in scenes],
                "question": question,
                "answer": answer,
                "kind": ask.__name__.strip("_"),
                "length": length,
                "depth": depth,
            }


def _which(rng: Random, place: int, length: int) -> tuple[list[Scene], str, str]:
    """A shape of a colour that no other picture shows."""
    wanted = _scene(rng)
    shape = rng.choice(wanted.shapes())
    scenes = [_scene(rng) for _ in range(length)]
    for number, scene in enumerate(scenes):
        while any((s.value, s.color) == (shape.value, shape.color) for s in scene.shapes()):
            scene = _scene(rng)
        scenes[number] = scene
    scenes[place] = wanted
    return scenes, WHICH.format(color=shape.color, shape=shape.value), str(place + 1)


def _digit(rng: Random, place: int, length: int) -> tuple[list[Scene], str, str]:
    """The digit of one picture; about half of the others show one as well."""
    scenes = [_scene(rng) for _ in range(length)]
    while (digit := scenes[place].find("digit")) is None:
        scenes[place] = _scene(rng)
    return scenes, DIGIT.format(number=place + 1), digit.value


def _scene(rng: Random) -> Scene:
    return replace(sample_scene(rng), brightness="bright")  # colours look as they are named


def _png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    render(scene).save(buffer, format="PNG")
    return buffer.getvalue()


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """The images in their order, RGB."""
    return [image.convert("RGB") for image in doc["images"]]


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """The question alone, for models that take the images apart from the text."""
    return str(doc["question"])


def doc_to_messages(doc: Mapping[str, Any], *_: Any) -> list[dict[str, Any]]:
    """Every image behind its number, then the question; the context ends with the last image."""
    parts: list[dict[str, Any]] = []
    for number, image in enumerate(doc_to_visual(doc), 1):
        parts += [{"type": "text", "text": f"Image {number}:"}, {"type": "image", "url": image}]
    parts.append({"type": "text", "text": "\n", "context": True})
    parts.append({"type": "text", "text": doc_to_text(doc)})
    return [{"role": "user", "content": parts}]


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 where the answer is the number and nothing else."""
    return {"exact_match": float(normalised(results[0]) == doc["answer"])}


def normalised(answer: str) -> str:
    """The first line without case, punctuation, leading zeros and the words around a number.

    "Image 7.", "7", "seven" and "The digit is 7" are "7"; "7 or 8" is not.
    """
    line = next((line for line in answer.lower().splitlines() if line.strip()), "")
    words = [word for word in re.findall(r"\w+", line) if word not in AROUND]
    numbers = {name: str(number) for number, name in enumerate(NUMBERS)}
    return " ".join(numbers.get(w, str(int(w[:1000])) if w.isdecimal() else w) for w in words)
