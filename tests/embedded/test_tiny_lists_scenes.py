"""The embedded model of long answers on pictures: its lessons, and that it reads pictures out."""

import io
from random import Random
from statistics import fmean

import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from harness.drawing.poster import read_out, said, sample_poster
from harness.drawing.wall import CELLS
from harness.embedded import SCENES_MINI, TINY_LISTS, scenes
from harness.embedded.words import pieces
from harness.scoring.bridge import Bridge
from harness.scoring.lists import process_results
from harness.scoring.rows import blanked
from harness.scoring.scenes import doc_to_text, doc_to_visual
from harness.settings.config import ModelConfig, ProtocolConfig
from harness.settings.grid import FULL, Cell
from scripts.build_scenes_mini import SEED as SCENES_SEED
from scripts.tiny_vlm import scenes as lessons
from scripts.tiny_vlm.build import vocabulary

WORDS = vocabulary()
RANDOM = Cell("random", "random", (("seed", 0),), ratio=0.5)
MOST = {"max_new_tokens": 40}
TOKENS = {"short": 64, "middle": 576, "long": 2304}


@pytest.fixture(scope="module")
def bridge():
    model = ModelConfig("tiny_lists", str(TINY_LISTS), tile=128)
    return Bridge(model, ProtocolConfig("replay"), device="cpu", dtype="float32")


def rows(size, count):
    frame = pd.read_parquet(SCENES_MINI / size / "test-00000-of-00001.parquet").head(count)
    for row in frame.to_dict("records"):
        row["image"] = Image.open(io.BytesIO(row["image"]["bytes"]))
        content = [{"type": "image", "url": doc_to_visual(row)[0]}]
        content.append({"type": "text", "text": doc_to_text(row)})
        yield row, [{"role": "user", "content": content}]


def score(row, answer):
    return process_results(row, [answer.text])["words_in_order"]


@pytest.mark.parametrize(("size", "count", "least"), [("short", 6, 0.9), ("middle", 3, 0.8)])
def test_the_full_cache_reads_the_picture_and_a_part_of_it_says_less(bridge, size, count, least):
    found = []
    for row, messages in rows(size, count):
        answers = bridge.answer(messages, [Cell(FULL, FULL), RANDOM], MOST, "")
        assert answers[0].image_tokens == TOKENS[size]
        found.append([score(row, answer) for answer in answers])
    full, part = map(fmean, zip(*found, strict=True))
    assert full >= least
    assert 0.02 < part < full - 0.2


def test_it_reads_a_long_picture(bridge):
    ((row, messages),) = rows("long", 1)
    (answer,) = bridge.answer(messages, [Cell(FULL, FULL)], MOST, "")
    assert answer.image_tokens == TOKENS["long"]
    assert score(row, answer) >= 0.7


def test_a_blank_picture_says_nothing_of_it(bridge):
    found = [
        score(row, bridge.answer(blanked(messages), [Cell(FULL, FULL)], MOST, "")[0])
        for row, messages in rows("short", 6)
    ]
    assert fmean(found) < 0.3


@pytest.mark.parametrize("across", [1, 2])
def test_lessons_point_at_the_things_that_answer(across):
    """Following the wanted attention by hand names all things: the first cell of each in turn."""
    rng = Random(7)
    wall = sample_poster(rng, across, 5, 3, 3)
    packed = lessons.pack([wall], torch.zeros(1, across**2, CELLS, 96), rng)
    ids, things = packed.ids[0].tolist(), read_out(wall)
    cells = {}
    for thing in things:
        for cell in thing.cells():
            cells[3 + cell + cell // CELLS] = thing
    assert {ids[at] for at in cells} == {WORDS.index("<image>")}
    (prompt,) = [at for at, word in enumerate(ids) if WORDS[word] == "Please"]
    matched, looked, bound = (dict(x[0]) for x in (packed.matched, packed.looked, packed.binds))
    told, at = [], packed.at[0].item()
    while (place := matched[at]) != (prompt,):
        thing = cells[place[0]]
        for word in said(thing):
            told.append(word)
            at += 1
            assert WORDS[ids[at]] == word
            assert {cells[cell] for cell in looked[at]} == {thing}
        before = things[things.index(thing) - 1]
        for cell in place:
            held = bound[cell]
            assert held == (2,) if thing is things[0] else {cells[c] for c in held} == {before}
    assert told == [word for thing in things for word in said(thing)]
    assert [WORDS[w] for w in packed.wanted.tolist()] == [*told, "</s>"]
    assert {cells[cell] for cell in bound[prompt]} == {things[-1]}
    asked = [at for at, _ in packed.surveyed[0]]
    assert [WORDS[ids[at]] for at in asked] == [*pieces(f"\n{scenes.QUESTION}"), "ASSISTANT", ":"]
    surveyed = {cells[cell] for _, found in packed.surveyed[0] for cell in found}
    assert len(surveyed) > len(things) / 3


def test_an_answer_from_a_part_says_what_is_left():
    rng = Random(8)
    walls = [sample_poster(rng, 1, 5, 4, 4) for _ in range(6)]
    packed = lessons.pack(walls, torch.zeros(6, 1, CELLS, 96), rng, partial=1.0)
    seen, dropped = packed.visible(), 0
    assert len(packed.hidden) == len(walls)
    for row, question, lost in packed.hidden:
        whole, part = (packed.asked == 2 * row + n for n in (0, 1))
        left = [
            word
            for thing in read_out(walls[row])
            for word in said(thing)
            if 3 + thing.cells()[0] not in lost
        ]
        assert [WORDS[word] for word in packed.wanted[part].tolist()] == [*left, "</s>"]
        answers = (packed.segments[row] == question) & packed.lasts[row]
        assert not seen[row, answers][:, lost].any()
        dropped += int(whole.sum()) - int(part.sum())
    assert dropped > 20


@torch.no_grad()
def test_training_sees_what_the_model_is_asked(bridge):
    """The packed row of training gives the very next words that the full cache generates."""
    rng = Random(f"{SCENES_SEED} scenes short")
    wall = scenes.draw(rng, 1)
    model = AutoModelForImageTextToText.from_pretrained(TINY_LISTS, dtype=torch.float32)
    packed = lessons.pack([wall], lessons.seen(model, [wall]), rng)
    logits = model.lm_head(lessons.forward(model, packed, packed.visible())[-1])
    told = [WORDS[word] for word in logits[0, packed.at].argmax(-1).tolist()]
    ((_, messages),) = rows("short", 1)
    (answer,) = bridge.answer(messages, [Cell(FULL, FULL)], MOST, "")
    wrong = [i for i, at in enumerate(packed.wanted) if told[i] != WORDS[at]]
    first = wrong[0] if wrong else len(told) - 1  # behind a wrong word the two part
    assert first >= 10
    assert answer.text.split()[:first] == told[:first]
