"""The text needle and the visual needle: where they lie, that they are unique, how they score."""

import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from harness.drawing.render import render
from harness.drawing.world import COLORS, SHAPES
from harness.errors import UserError
from harness.scoring import generators, sources
from harness.scoring.needle import visual
from harness.scoring.needle.tasks import Needle
from harness.scoring.ruler.lengths import TokenCounter
from tests.scoring import generated_data
from tests.scoring.generated_data import tokenizer
from tests.scoring.lmms_tasks import build, results

DEPTHS = [0, 25, 50, 75, 100]
SANDWICH = "eat a sandwich and sit in Dolores Park on a sunny day"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVICTBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def essays(tmp_path_factory: pytest.TempPathFactory) -> str:
    return generated_data.essays(tmp_path_factory.mktemp("sources") / "essays")


def draw(essays: str = "", name: str = "bpe", length: int = 2048, **options: Any) -> list[Any]:
    chosen = {"depths": DEPTHS, "samples": 1, "needles": 1, "task": "needle", "length": length}
    chosen["haystack"] = "essays" if essays else "noise"
    chosen["sources"] = {"essays": essays} if essays else {}
    chosen.update(options)
    return list(Needle().rows(chosen, tokenizer(name), 42))


def hidden(row: dict[str, Any]) -> str:
    head, context = row["input"][: row["context_end"]].split("\n\n", 1)
    assert head.endswith("Keep your response short and direct")
    return context


@pytest.mark.parametrize("name", ["bpe", "bpe_chat", "words", "tiny_vlm"])
@pytest.mark.parametrize("haystack", ["essays", "noise"])
def test_depth_and_length(haystack: str, name: str, essays: str) -> None:
    rows = draw(essays if haystack == "essays" else "", name)
    count = TokenCounter(tokenizer(name))
    assert [row["depth"] for row in rows] == DEPTHS
    for row in rows:
        context = hidden(row)
        assert row["input"].count(SANDWICH) == 1
        assert row["outputs"] == [SANDWICH]
        place = context.index("\nThe best thing to do in San Francisco is") / (len(context) - 90)
        assert row["depth"] / 100 - 0.03 <= place <= row["depth"] / 100 + 1e-3
        assert row["length"] == count([row["input"]])[0] + 64 + count.reserve
        assert 0.93 * 2048 <= row["length"] <= 2048


def test_a_needle_stands_between_sentences(essays: str) -> None:
    text = b"".join(f.read_bytes() for f in sorted(Path(essays).glob("*.txt"))).decode()
    for row in draw(essays, depths=[10, 37, 62, 99]):
        before, after = hidden(row).split(
            f"\nThe best thing to do in San Francisco is {SANDWICH}.\n"
        )
        assert before[-1] in ".!?"
        assert text.startswith(before + after)
        assert row["input"].endswith(
            "\n\nWhat is the best thing to do in San Francisco? Don't give information outside the "
            "document or repeat your findings"
        )


def test_several_needles_spread_evenly_behind_the_first(essays: str) -> None:
    for row in draw(essays, needles=4, length=4096, depths=[0, 20, 60]):
        context = hidden(row)
        rest = r"are one of the secret ingredients needed to build the perfect pizza\. "
        found = list(re.finditer(rf" ([\w ]+) {rest}", context))
        assert [match[1] for match in found] == row["outputs"]
        assert row["outputs"] == ["Figs", "Prosciutto", "Goat cheese", "Walnuts"]
        places = [100 * match.start() / len(context) for match in found]
        assert abs(places[0] - row["depth"]) < 3
        step = (100 - row["depth"]) / 4
        assert all(abs(b - a - step) < 4 for a, b in pairwise(places))
    last = hidden(draw(essays, needles=2, depths=[100])[0])
    assert last.endswith("pizza.  Prosciutto are one of the secret ingredients needed to build the "
                         "perfect pizza. ")  # fmt: skip


def test_further_samples_begin_elsewhere(essays: str) -> None:
    rows = draw(essays, samples=3, depths=[0, 100])
    assert [row["depth"] for row in rows] == [0, 0, 0, 100, 100, 100]
    texts = [hidden(row).replace("\n", " ") for row in rows]
    assert len(set(texts)) == 6
    begins = [text[len(SANDWICH) + 60 : len(SANDWICH) + 100] for text in texts[:3]]
    assert len(set(begins)) == 3
    again = draw(essays, samples=3, depths=[100])
    assert [row["input"] for row in again] == [row["input"] for row in rows[3:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": [0, 101]}, r"data.depths=\[0, 101\] is not a grid"),
        ({"depths": []}, "is not a grid"),
        ({"depths": "0,50"}, "is not a grid"),
        ({"needles": 0}, "data.needles=0 is not from 1 to 10"),
        ({"needles": 11}, "data.needles=11 is not from 1 to 10"),
        ({"haystack": "hay"}, "data.haystack=hay is not known: use one of essays, noise"),
        ({"length": 100}, "^needle does not fit in 100 tokens: .* use lengths from"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(**options)


def test_essays_missing_names_the_other_haystack(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_packaged", lambda name: None)
    options = {"task": "needle", "length": 1024, "generator": "needle"}
    assert generators.needs_hub(options) == "Paul Graham's essays"
    assert generators.needs_hub({**options, "haystack": "noise"}) is None


def test_needle_scores(cache: Path) -> None:
    options = {"task": "needle", "length": 1024, "haystack": "noise", "depths": [0, 50]}
    made = tokenizer("bpe")
    task = build("needle", generators.prepare("needle", options, made, "f", 42, progress=False))
    answers = [f"You should {SANDWICH.upper()}!", "Eat a sandwich."]
    assert [r["string_match"] for r in results(task, answers)] == [1.0, 0.0]
    rows, kinds = list(task.eval_docs), task.config.metadata
    assert [row[kinds["l2_category"]] for row in rows] == [0.0, 50.0]
    assert {row[kinds["category"]] for row in rows} == {1024}
    assert len(task.doc_to_messages(rows[0])) == 1
    several = generators.prepare("needle", {**options, "needles": 3}, made, "f", 42, False)
    found = results(build("needle", several), ["Figs and goat cheese", "prosciutto"])
    assert [r["string_match"] for r in found] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def pictures(length: int = 9, samples: int = 4, seed: int = 42) -> list[dict[str, Any]]:
    options = {"task": "v", "length": length, "samples": samples, "depths": DEPTHS}
    return list(visual.VisualNeedle().rows(options, None, seed))


def test_a_shape_is_in_one_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solved from the scenes as they were drawn, picture by picture."""
    drawn: dict[bytes, Any] = {}

    def note(scene: Any) -> Image.Image:
        picture = render(scene)
        drawn[picture.tobytes()] = scene
        return picture

    monkeypatch.setattr(visual, "render", note)
    kinds = []
    for row in pictures():
        scenes = [drawn[opened(image).tobytes()] for image in row["images"]]
        assert len(scenes) == row["length"] == 9
        assert all(scene.brightness == "bright" for scene in scenes)
        expected_place = round(row["depth"] / 100 * 8) + 1
        which = re.match(r"In which image is the (\w+) (\w+)\? Answer", row["question"])
        if which:
            assert which[1] in COLORS
            assert which[2] in SHAPES
            holding = [
                number
                for number, scene in enumerate(scenes, 1)
                if any((item.color, item.value) == which.groups() for item in scene.shapes())
            ]
            assert holding == [expected_place] == [int(row["answer"])]
        else:
            asked = re.match(r"What is the digit in image (\d+)\? Answer", row["question"])
            assert asked is not None
            assert int(asked[1]) == expected_place
            digits = [i.value for i in scenes[expected_place - 1].items if i.kind == "digit"]
            assert digits == [row["answer"]]
        kinds.append(row["kind"])
    assert kinds == ["which", "digit"] * 10


def opened(image: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(image["bytes"])).convert("RGB")


def test_pictures_are_the_same_again_and_differ_by_seed() -> None:
    assert pictures() == pictures()
    assert pictures(seed=1) != pictures()
    assert pictures(length=1, samples=1)[0]["images"]


ANSWERS = [
    ("7", "7", 1), ("7.", "7", 1), ("Image 7", "7", 1), ("seven", "7", 1), ("Seven.", "7", 1),
    ("The digit is 7.", "7", 1), ("(7)", "7", 1), ("07", "7", 1), ("\n7\nbecause", "7", 1),
    ("It is in image 12", "12", 1), ("8", "7", 0), ("17", "7", 0), ("7 or 8", "7", 0),
    ("", "7", 0), ("the heart", "7", 0), ("1 2", "12", 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "answer", "expected"), ANSWERS)
def test_visual_answers(text: str, answer: str, expected: int) -> None:
    assert visual.process_results({"answer": answer}, [text]) == {"exact_match": expected}


def test_visual_task_of_lmms_eval(cache: Path) -> None:
    options = {"task": "visual_needle", "length": 3, "samples": 2, "depths": [0, 100]}
    folder = generators.prepare("visual_needle", options, None, "", 42, progress=False)
    task = build("visual_needle", folder)
    rows = list(task.eval_docs)
    answers = [f"Image {row['answer']}." for row in rows]
    assert [r["exact_match"] for r in results(task, answers)] == [1.0] * 4
    assert [r["exact_match"] for r in results(task, ["red"] * 4)] == [0.0] * 4
    (message,) = task.doc_to_messages(rows[0])
    parts = message["content"]
    assert [part["type"] for part in parts] == ["text", "image"] * 3 + ["text", "text"]
    assert [part["text"] for part in parts[:6:2]] == ["Image 1:", "Image 2:", "Image 3:"]
    assert [i for i, part in enumerate(parts) if part.get("context")] == [6]
    assert parts[7]["text"] == rows[0]["question"]
    stored = load_dataset(str(folder), cache_dir=str(cache / "hf"))["test"][0]["images"]
    for part, image in zip(parts[1:6:2], stored, strict=True):
        assert part["url"].size == (128, 128)
        assert np.array_equal(np.asarray(part["url"]), np.asarray(image.convert("RGB")))
    kinds = task.config.metadata
    assert [row[kinds["l2_category"]] for row in rows] == [0.0, 0.0, 100.0, 100.0]
    assert {row[kinds["category"]] for row in rows} == {3}
