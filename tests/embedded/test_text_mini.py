"""The embedded text benchmarks: repeatable, within their lengths, solvable from the text alone."""

import re
from collections import Counter

import pandas as pd
import pytest

from harness.embedded import (
    HOME,
    MMBENCH_MINI,
    TINY_VLM,
    haystacks,
    lists,
    longbench_prompts,
    texts,
)
from harness.embedded.words import KEYS, LABELS, NAMES, TYPES, VALUES, pieces
from harness.models.loading import load
from harness.scoring.ruler.prompts import doc_to_messages
from scripts.build_text_mini import DEPTHS, LENGTHS, LISTS, NEEDLES, ROWS, SEED
from scripts.build_text_mini import build as build_text_mini
from scripts.tiny_vlm import build

RULER = ("niah_single", "niah_multikey", "niah_multivalue", "vt")
LONGBENCH = ("passage_retrieval", "passage_count", "few_shot", "key_value")
MAGIC = re.compile(r"One of the special magic words for (\w+) is: (\w+)\.")


def table(family, name):
    return pd.read_parquet(HOME / family / name / "test-00000-of-00001.parquet")


def ruler():
    return [(name, row) for name in RULER for _, row in table("ruler_mini", name).iterrows()]


def longbench(name):
    return [row for _, row in table("longbench_mini", name).iterrows()]


@pytest.fixture(scope="module")
def model():
    return load(str(TINY_VLM), device="cpu")


def test_rebuilding_gives_the_shipped_bytes(tmp_path):
    build_text_mini(tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(made) == 4 + len(RULER) + len(LONGBENCH) + 1 + len(lists.ASKED)
    for path in made:
        assert (tmp_path / path).read_bytes() == (HOME / path).read_bytes(), path


def test_another_seed_gives_other_texts(tmp_path):
    build_text_mini(tmp_path, SEED + 1)
    path = "ruler_mini/vt/test-00000-of-00001.parquet"
    assert (tmp_path / path).read_bytes() != (HOME / path).read_bytes()


def test_answer_words_are_no_part_of_each_other():
    """RULER and LongBench look for the reference anywhere in the answer, whatever its case."""
    for group in (VALUES, [name.lower() for name in NAMES], LABELS):
        words = " ".join({*VALUES, *LABELS, *KEYS, *(name.lower() for name in NAMES)})
        for word in group:
            assert words.count(word) == 1, word


def test_every_word_is_a_token_of_the_model(model):
    unknown = model.tokenizer.unk_token_id
    for group in (KEYS, VALUES, NAMES, LABELS, *TYPES.values()):
        for word in group:
            ids = model.tokenizer.encode(word, add_special_tokens=False)
            assert len(ids) == 1
            assert ids[0] != unknown


@pytest.mark.parametrize("length", LENGTHS)
def test_ruler_lengths_are_those_of_the_real_prompt(model, length):
    rows = [row for _, row in ruler() if row["max_length"] == length]
    assert len(rows) == len(RULER) * ROWS
    for row in rows[::5]:
        ids = model.prompt(doc_to_messages(row)).inputs["input_ids"]
        assert ids.shape[1] + len(row["outputs"]) + 1 == row["length"]
        assert length - 12 < row["length"] <= length
        assert not (ids == model.tokenizer.unk_token_id).any()


def test_needles_are_solved_by_reading():
    for name, row in ruler():
        if name == "vt":
            continue
        found = MAGIC.findall(row["input"][: row["context_end"]])
        key = re.search(r"for (\w+) mentioned in the provided text\?$", row["input"]).group(1)
        assert [value for k, value in found if k == key] == list(row["outputs"])
        assert f" for {key} mentioned" in row["answer_prefix"]
        values = [value for _, value in found]
        assert len(set(values)) == len(values)
        keys = Counter(k for k, _ in found)
        expected = {"niah_single": {1}, "niah_multikey": {1}, "niah_multivalue": {4}}[name]
        assert set(keys.values()) == expected
        wanted = min(16, row["max_length"] // 32) if name == "niah_multikey" else 1
        assert len(keys) == wanted


def test_variables_are_solved_by_following_the_assignments():
    for name, row in ruler():
        if name != "vt":
            continue
        value = re.search(r"the value (\w+) in the text above\.$", row["input"]).group(1)
        held, order = {}, []
        for new, old, word in re.findall(r"VAR (\w+) = (?:VAR (\w+)|(\w+))", row["input"]):
            assert new not in held
            held[new] = word or held[old]
            order += [new] if held[new] == value else []
        assert order == list(row["outputs"])
        assert len(order) == texts.HOPS + 1


@pytest.mark.parametrize("name", ["niah_single", "niah_multikey"])
def test_depths_run_evenly_from_the_beginning_to_the_end(name):
    frame = table("ruler_mini", name)
    for _, rows in frame.groupby("max_length"):
        for index, (_, row) in enumerate(rows.iterrows()):
            context = row["input"][: row["context_end"]].split("\n", 1)[1]
            before, after = context.split(f"is: {row['outputs'][0]}.")
            noise = [len(re.findall("|".join(haystacks.NOISE), part)) for part in (before, after)]
            assert noise[0] == pytest.approx(index / (ROWS - 1) * sum(noise), abs=0.51)


def test_the_needle_grid_is_complete_and_at_its_depths(model):
    frame = table("needle_mini", "needle")
    counts = frame.groupby(["max_length", "depth"]).size()
    assert list(counts.index) == [(length, depth) for length in LENGTHS for depth in DEPTHS]
    assert set(counts) == {NEEDLES}
    for _, row in frame.iterrows():
        ((key, value),) = re.findall(r"The secret word for (\w+) is (\w+)\.", row["input"])
        assert [value] == list(row["outputs"])
        assert row["input"].endswith(f"secret word for {key}? Answer with the word directly.")
        before, after = row["input"].split(f" is {value}.")
        noise = [len(re.findall("|".join(haystacks.NOISE), part)) for part in (before, after)]
        assert noise[0] == pytest.approx(row["depth"] / 100 * sum(noise), abs=0.51)
        assert row["max_length"] - 8 < row["length"] <= row["max_length"]


@pytest.mark.parametrize("kind", lists.ASKED)
def test_lists_are_solved_by_reading(model, kind):
    frame = table("lists_mini", kind)
    assert dict(frame.groupby("words").size()) == dict.fromkeys(lists.LENGTHS, LISTS)
    for index, (_, row) in enumerate(frame.iterrows()):
        ((before, said, after),) = re.findall(
            r"^(.*)The words are: ([a-z ]+)\.(.*)$", row["input"][: row["context_end"]], re.DOTALL
        )
        words = said.split()
        assert len(words) == len(set(words)) == row["words"]
        assert (words if kind == "copy" else words[::-1]) == list(row["outputs"])
        assert row["input"].endswith(f"\n{lists.ASKED[kind]}")
        noise = [len(re.findall("|".join(haystacks.NOISE), part)) for part in (before, after)]
        depth = 7 * (index // len(lists.LENGTHS)) % LISTS / (LISTS - 1)
        assert noise[0] == pytest.approx(depth * sum(noise), abs=0.51)
        ids = model.prompt(doc_to_messages(row)).inputs["input_ids"]
        assert ids.shape[1] + len(words) + 1 == row["length"]
        assert row["max_length"] - 12 < row["length"] <= row["max_length"]
        assert not (ids == model.tokenizer.unk_token_id).any()


def test_longbench_has_the_released_columns():
    for name in LONGBENCH:
        frame = table("longbench_mini", name)
        released = ["input", "context", "answers", "length", "dataset", "language", "all_classes"]
        assert list(frame.columns) == [*released, "_id"]
        assert frame["_id"].is_unique
        assert (frame["dataset"] == name).all()


def test_longbench_prompts_fit_their_lengths(model):
    for name in LONGBENCH:
        for index, row in enumerate(longbench(name)):
            messages = longbench_prompts.doc_to_messages(row)
            text = "".join(part["text"] for part in messages[0]["content"])
            tokens = len(pieces(text)) + haystacks.WRAPPING * messages[0].get("template", True) + 2
            assert LENGTHS[1 + index % 4] - 24 < tokens <= LENGTHS[1 + index % 4]


def test_paragraphs_are_solved_by_reading():
    for row in longbench("passage_retrieval"):
        key = re.fullmatch(r"It tells about the (\w+)\.", row["input"]).group(1)
        found = re.findall(r"Paragraph (\d): This is about the (\w+)\.", row["context"])
        assert [f"Paragraph {number}" for number, k in found if k == key] == list(row["answers"])
    for row in longbench("passage_count"):
        bodies = [part.split(":", 1)[1] for part in row["context"].split("\n\n")]
        assert [str(len(set(bodies)))] == list(row["answers"])


def test_facts_are_solved_by_reading():
    for row in longbench("key_value"):
        what = re.fullmatch(r"What is the (\w+ of the \w+)\?", row["input"]).group(1)
        assert re.findall(rf"The {what} is (\w+)\.", row["context"]) == list(row["answers"])


def test_examples_name_each_type_once_and_hold_the_asked_word_back():
    kinds = {word: kind for kind, group in TYPES.items() for word in group}
    for row in longbench("few_shot"):
        shown = re.findall(r"Question: What is a (\w+)\?\nType: (\w+)", row["context"])
        named = {(kinds[word], label) for word, label in shown}
        assert len(named) == len(dict(named)) == len(row["all_classes"])
        asked = re.fullmatch(r"Question: What is a (\w+)\?\nType:", row["input"]).group(1)
        assert asked not in dict(shown)
        assert [dict(named)[kinds[asked]]] == list(row["answers"])


def test_mmbench_prompts_are_tokenised_as_before_the_texts(model):
    """The words of pictures keep their ids; no text word takes a piece of an MMBench prompt."""
    old = set(build.picture_words())
    frame = pd.read_parquet(MMBENCH_MINI / "en" / "dev-00000-of-00001.parquet")
    for column in ("question", "hint", "A", "B", "C", "D"):
        for text in frame[column].dropna().unique():
            assert set(model.tokenizer.tokenize(text)) <= old - {"<unk>"}


def test_weaving_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="too few"):
        haystacks.weave([(0.5, "The secret word for wolf is copper.")], 5)
