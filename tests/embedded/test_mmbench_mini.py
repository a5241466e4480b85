"""The embedded benchmark: repeatable, in MMBench's schema, answerable from the picture alone."""

import io
from collections import defaultdict
from random import Random

import pandas as pd
import pytest
from PIL import Image

from harness.drawing import world
from harness.drawing.render import CELL, RGB, render
from harness.drawing.world import sample_scene
from harness.embedded import MMBENCH_MINI
from harness.embedded.questions import KINDS, ask, prompt
from scripts.build_mmbench_mini import ROTATION, build

SHIPPED = MMBENCH_MINI / "en" / "dev-00000-of-00001.parquet"
COLUMNS = ["index", "question", "hint", "answer", "A", "B", "C", "D", "category", "image"]
COLUMNS += ["source", "L2-category", "comment", "split"]


@pytest.fixture(scope="module")
def frame():
    return pd.read_parquet(SHIPPED)


def options(row):
    return [row[x] for x in "ABCD" if not pd.isna(row[x])]


def test_rebuilding_gives_the_shipped_bytes(tmp_path):
    build(tmp_path)
    assert (tmp_path / "en" / SHIPPED.name).read_bytes() == SHIPPED.read_bytes()
    assert (tmp_path / "README.md").read_text() == (MMBENCH_MINI / "README.md").read_text()


def test_schema_and_size(frame):
    assert list(frame.columns) == COLUMNS
    assert frame["index"].is_unique
    assert (frame["index"] % ROTATION).nunique() >= 300
    assert len(frame) >= 1000
    assert frame["category"].nunique() >= 6
    assert frame["comment"].nunique() == len(KINDS)
    assert 0.1 < frame["hint"].notna().mean() < 0.3
    assert not (frame[["hint", "A", "B", "C", "D"]] == "nan").any(axis=None)


def test_every_rotation_is_there_once_and_turns_by_one(frame):
    for _, rows in frame.groupby(frame["index"] % ROTATION):
        rows = rows.sort_values("index")
        first = options(rows.iloc[0])
        assert 2 <= len(first) <= 4
        assert len(set(first)) == len(first) == len(rows)
        answer = rows.iloc[0][rows.iloc[0]["answer"]]
        for turn, (_, row) in enumerate(rows.iterrows()):
            assert row["index"] // ROTATION == turn
            assert options(row) == first[turn:] + first[:turn]
            assert row[row["answer"]] == answer


def test_the_text_alone_does_not_give_the_answer(frame):
    """Guessing each question text's most frequent answer stays near chance."""
    base = frame[frame["index"] < ROTATION]
    said = defaultdict(list)
    for _, row in base.iterrows():
        said[row["question"]].append(row[row["answer"]])
    pairs = [(k, v) for k, v in said.items() if len(v) >= 8]
    assert len(pairs) >= 8
    best = sum(max(map(v.count, set(v))) for _, v in pairs) / sum(len(v) for _, v in pairs)
    chance = (1 / base.apply(lambda row: len(options(row)), axis=1)).mean()
    assert best < chance + 0.15


def test_images_decode_to_the_stated_size(frame):
    for cell in frame["image"].iloc[::97]:
        assert Image.open(io.BytesIO(cell["bytes"])).size == (world.GRID * CELL,) * 2


@pytest.mark.parametrize("kind", ["color", "shape", "largest_color", "largest_shape"])
def test_answers_agree_with_the_pixels(kind):
    """Reads the colour in the middle of the asked shape and compares it with the answer."""
    rng, checked = Random(41), 0
    while checked < 40:
        scene = sample_scene(rng)
        question = ask(scene, kind, rng)
        rows, cols = zip(*(divmod(c, world.GRID) for c in question.cells), strict=True)
        left, top = min(cols) * CELL, min(rows) * CELL
        side = CELL * (2 if len(question.cells) == 4 else 1)
        item = next(i for i in scene.shapes() if i.cells() == list(question.cells))
        if item.value == "ring" or scene.brightness != "bright":
            continue
        middle = (left + side // 2 + item.jitter[0], top + side // 2 + item.jitter[1])
        pixel = render(scene).getpixel(middle)
        nearest = min(
            world.COLORS, key=lambda c: sum(abs(a - b) for a, b in zip(RGB[c], pixel, strict=True))
        )
        assert nearest == item.color
        assert question.answer == (nearest if kind.endswith("color") else item.value)
        if kind == "shape":
            assert question.text.rstrip("?").split()[-1] == nearest
        checked += 1


def test_relation_and_count_agree_with_the_scene():
    rng = Random(43)
    for _ in range(300):
        scene = sample_scene(rng)
        count = ask(scene, "count", rng)
        assert int(count.answer) == sum(i.kind == "shape" for i in scene.items)
        relation = ask(scene, "relation", rng)
        if relation is None:
            continue
        words = relation.text.replace(",", "").rstrip("?").split()
        other, asked = (
            next(i for i in scene.shapes() if i.value == w) for w in (words[4], words[-1])
        )
        gap = asked.col - other.col if words[0] == "Left" else asked.row - other.row
        names = ("left", "right") if words[0] == "Left" else ("above", "below")
        assert relation.answer == names[gap > 0]


def test_prompt_is_what_the_mmbench_task_writes(frame):
    """Compared with the text function of lmms-eval's own task."""
    from lmms_eval.tasks.mmbench import en_utils as utils  # late: slow to import

    post = {"post_prompt": "\nAnswer with the option's letter from the given choices directly."}
    rng, scenes = Random(3), 0
    while scenes < 30:
        scene = sample_scene(rng)
        question = ask(scene, rng.choice(list(KINDS)), rng)
        if question is None:
            continue
        doc = dict.fromkeys(COLUMNS) | {"question": question.text, "hint": question.hint}
        doc |= dict(zip("ABCD", question.options, strict=False))
        assert utils.mmbench_doc_to_text(doc, post) == prompt(question)
        scenes += 1
