"""The embedded model of long answers: its record, its lessons, and that it says lists again."""

import json
from random import Random
from statistics import fmean

import pandas as pd
import pytest
import torch
from safetensors import safe_open

import methods
from harness.embedded import HOME, TINY_LISTS, TINY_VLM_LONG, lists
from harness.engine import Branch, Engine, Generation
from harness.models import loading
from harness.scoring.lists import process_results
from harness.scoring.ruler.prompts import doc_to_messages
from scripts.build_scenes_mini import SEED as SCENES_SEED
from scripts.build_text_mini import SEED as TEXT_BENCHMARK_SEED
from scripts.tiny_vlm import lists as lessons
from scripts.tiny_vlm.build import vocabulary

WORDS = vocabulary()


@pytest.fixture(scope="module")
def engine():
    return Engine(loading.load(str(TINY_LISTS), device="cpu"))


def rows(kind, words, every):
    frame = pd.read_parquet(HOME / "lists_mini" / kind / "test-00000-of-00001.parquet")
    return [row for _, row in frame[frame["words"] == words].iloc[::every].iterrows()]


def scores(engine, asked, branches):
    """Of each branch, the mean score over the rows."""
    found = []
    for row in asked:
        results = engine.run(engine.loaded.prompt(doc_to_messages(row)), branches, Generation(64))
        found.append([process_results(row, [r.text])["words_in_order"] for r in results])
    return [fmean(of) for of in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("kind", "words", "least"), [("copy", 40, 0.9), ("copy", 60, 0.9), ("reverse", 60, 0.8)]
)
def test_the_full_cache_says_the_list(engine, kind, words, least):
    assert scores(engine, rows(kind, words, 2), [Branch()])[0] >= least


def test_every_lost_entry_costs_something(engine):
    """At four fifths evicted a random choice loses most of the list, and not all of it."""
    random = Branch(methods.build("random", seed=0), ratio=0.8)
    full, left = scores(engine, rows("copy", 40, 3), [Branch(), random])
    assert 0.02 < left < 0.6 < full


def test_it_goes_on_from_the_model_of_long_prompts():
    record = json.loads((TINY_LISTS / "training.json").read_text())
    before = json.loads((TINY_VLM_LONG / "training.json").read_text())
    assert record["parts"].items() >= before["parts"].items()
    assert record["seed"] != record["text_benchmark_seed"] == TEXT_BENCHMARK_SEED
    assert list(record["parts"])[-2:] == ["lists", "scenes"]
    assert record["seed"] != record["scenes_seed"] == SCENES_SEED
    assert record["command"].endswith("--part scenes --start harness/embedded/tiny_lists")
    places = [folder / "model.safetensors" for folder in (TINY_VLM_LONG, TINY_LISTS)]
    with safe_open(places[0], "pt") as one, safe_open(places[1], "pt") as other:
        same = [n for n in one.keys() if "vision_tower" in n]  # noqa: SIM118
        assert same
        assert all((one.get_tensor(n) == other.get_tensor(n)).all() for n in same)
        assert {other.get_tensor(n).dtype for n in other.keys()} == {torch.float16}  # noqa: SIM118


@pytest.mark.parametrize("kind", lists.ASKED)
def test_lessons_point_at_the_words_that_answer(kind):
    """Following the wanted attention by hand gives the list: the word itself, or the one before."""
    packed = lessons.pack([lists.draw(Random(5), 20, 160)], Random(5))
    ids, number = packed.ids[0].tolist(), list(lists.ASKED).index(kind)
    of = packed.kind == number
    pairs = dict((packed.matched if kind == "copy" else packed.echoed)[0])
    asked = zip(packed.at[of].tolist(), packed.wanted[of].tolist(), strict=True)
    said = []
    for at, wanted in asked:
        (place,) = pairs.pop(at)
        found = ids[place] if kind == "copy" else ids[place - 1]
        assert found == wanted or (wanted == lessons.EOS and WORDS[found] in ".:")
        said.append(WORDS[wanted])
    assert not pairs
    text = lists.draw(Random(5), 20, 160)
    assert said == [*text.queries[number].outputs, "</s>"]
    assert all(places == (at - 1,) for at, places in packed.binds[0])


def test_an_answer_from_a_part_says_what_is_left():
    """Lost words are not in the answer and not in its sight; whatever is before it sees all."""
    rng = Random(6)
    texts = [lists.draw(rng, 20, 160) for _ in range(6)]
    packed, whole = lessons.pack(texts, rng, partial=1.0), lessons.pack(texts, rng)
    seen = packed.visible()
    before = ~packed.lasts & (packed.segments >= 0)
    plain = super(lessons.Lists, packed).visible()
    assert torch.equal(seen[before], plain[before])
    assert len(packed.hidden) == len(texts) * len(lists.ASKED)
    lost = 0
    for number, (row, question, hidden) in enumerate(packed.hidden):
        full = whole.wanted[whole.asked == number].tolist()
        said = packed.wanted[packed.asked == number].tolist()
        gone = {packed.ids[row, at].item() for at in hidden}
        assert said == [word for word in full if word not in gone]
        answers = (packed.segments[row] == question) & packed.lasts[row]
        assert not seen[row, answers][:, hidden].any()
        lost += len(full) - len(said)
    assert lost > 20
