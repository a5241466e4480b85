"""What a task may ask of its messages: a marked context, no template, a prefix, a cut middle."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tiny_models import build_llama, make_tokenizer

from harness.errors import UserError
from harness.models import chat
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.scoring.bridge import Bridge
from harness.settings.config import ModelConfig, ProtocolConfig
from harness.settings.grid import Cell

TEMPLATE = (
    "<s> {% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}w60 w61{% endif %}"
)
WORDS = [f"w{i}" for i in range(1, 40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    build_llama().save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(str(folder), device="cpu", dtype="float32")


def said(loaded: LoadedModel, prompt) -> list[str]:
    return loaded.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0].tolist())


def ask(*parts: str, marked: int | None = None, **keys: object) -> list[dict]:
    content = [{"type": "text", "text": text} for text in parts]
    if marked is not None:
        content[marked]["context"] = True
    return [{"role": "user", "content": content, **keys}]


def test_texts_that_follow_one_another_reach_the_template_as_one(loaded):
    together = loaded.prompt(ask("w1 w2 w3"))
    apart = loaded.prompt(ask("w1 w2", " w3", marked=0))
    assert said(loaded, apart) == said(loaded, together)
    assert together.context is None
    before = said(loaded, apart)[: apart.context]
    assert before[-2:] == ["w1", "w2"]


def test_texts_around_an_image_stay_apart():
    image = Image.new("RGB", (4, 4))
    parts = [{"type": "text", "text": "a"}, {"type": "image", "url": image}]
    read = chat.read([{"role": "user", "content": [*parts, {"type": "text", "text": "b"}]}])
    assert [part["type"] for part in read.messages[0]["content"]] == ["text", "image", "text"]
    assert read.images == [image]
    assert read.only_user_text() is None


def test_a_prompt_without_the_template_is_its_text_behind_the_usual_first_token(loaded):
    prompt = loaded.prompt(ask("w1 w2", " w3", marked=0, template=False))
    expected = loaded.tokenizer("w1 w2 w3").input_ids
    assert prompt.inputs["input_ids"][0].tolist() == expected
    assert said(loaded, prompt)[: prompt.context][-1] == "w2"


def test_the_beginning_of_an_answer_follows_the_generation_prompt_as_it_is(loaded):
    prefix = {"role": "assistant", "content": [{"type": "text", "text": " w50 w51"}]}
    prompt = loaded.prompt([*ask("w1 w2"), prefix])
    tokens = said(loaded, prompt)
    assert tokens[-4:] == ["w60", "w61", "w50", "w51"]
    assert prompt.suffix == len(tokens) - tokens.index("w2") - 1


def test_without_a_template_the_beginning_of_an_answer_follows_the_text():
    prefix = {"role": "assistant", "content": "\nAnswer: "}
    assert chat.read([*ask("What?"), prefix]).plain() == "What?\nAnswer: "
    assert chat.read(ask("What?")).plain() == "What?"


@pytest.mark.parametrize("room", [14, 17, 20, 33])
def test_a_long_text_loses_its_middle_before_the_template(loaded, room):
    whole = loaded.prompt(ask(" ".join(WORDS), truncate="middle"))
    prompt = loaded.prompt(ask(" ".join(WORDS), truncate="middle"), room)
    tokens = said(loaded, prompt)
    kept = [token for token in tokens if token in WORDS]
    first = next(i for i, word in enumerate(WORDS) if word not in kept)
    assert len(tokens) <= room
    assert len(tokens) >= room - 2  # both halves are whole tokens
    assert prompt.cut == whole.inputs["input_ids"].shape[1] - len(tokens)
    assert kept == WORDS[:first] + WORDS[first - len(kept) :]
    assert abs(2 * first - len(kept)) <= 1  # the first token of all counts as text
    assert tokens[-2:] == ["w60", "w61"]  # what the template adds is not cut


def test_the_mark_moves_with_the_text_that_is_left(loaded):
    context, question = " ".join(WORDS), " w50 w51"
    prompt = loaded.prompt(ask(context, question, marked=0, truncate="middle"), 20)
    tokens = said(loaded, prompt)
    assert tokens[prompt.context - 1] == WORDS[-1]
    assert tokens[prompt.context : prompt.context + 2] == ["w50", "w51"]


def test_a_question_that_is_cut_itself_has_no_mark(loaded):
    context, question = "w1 w2", " " + " ".join(WORDS[2:])
    prompt = loaded.prompt(ask(context, question, marked=0, truncate="middle"), 20)
    assert prompt.cut
    assert prompt.context is None


def test_what_fits_is_left_alone(loaded):
    prompt = loaded.prompt(ask(" ".join(WORDS), truncate="middle"), 1000)
    assert prompt.cut == 0


@pytest.mark.parametrize(
    ("messages", "room", "told"),
    [
        (ask(" ".join(WORDS)), 20, "does not fit the 20"),
        (ask(" ".join(WORDS), truncate="middle"), 5, "leaves no room"),
        (ask("w1", truncate="end"), None, "give middle"),
    ],
)
def test_what_does_not_fit_is_one_sentence(loaded, messages, room, told):
    with pytest.raises(ValueError, match=told) as error:
        loaded.prompt(messages, room)
    assert "\n" not in str(error.value)


def bridge(folder: Path, limit: int | None) -> Bridge:
    model = ModelConfig("tiny", str(folder), images=False, max_length=limit)
    return Bridge(model, ProtocolConfig("replay"), "cpu", "float32")


def test_the_limit_of_the_model_counts_prompt_and_answer(folder):
    cells = [Cell("full", "full"), Cell("r", "snapkv", (("window", 4),), ratio=0.5)]
    question = ask(" ".join(WORDS), truncate="middle")
    for limit in (24, 30):
        results = bridge(folder, limit).answer(question, cells, {"max_new_tokens": 4}, ())
        lengths = {result.prompt_tokens for result in results}
        assert len(lengths) == 1
        assert limit - 6 <= lengths.pop() <= limit - 4
        assert all(result.truncated_tokens > 0 for result in results)
    untouched = bridge(folder, None).answer(question, cells, {"max_new_tokens": 4}, ())
    assert untouched[0].truncated_tokens == 0


def test_a_limit_that_leaves_no_prompt_is_refused(folder):
    with pytest.raises(UserError, match="leave no prompt"):
        bridge(folder, 4).answer(ask("w1"), [Cell("full", "full")], {"max_new_tokens": 4}, ())


@pytest.mark.parametrize("count", [10, 13, 24])
def test_a_text_is_cut_to_the_length_that_a_protocol_names(loaded, count):
    """As LongBench's released pred.py: both halves of max_length tokens, whatever the template."""
    text = " ".join(WORDS)
    ids = loaded.tokenizer(text).input_ids
    expected = loaded.decode(ids[: count // 2]) + loaded.decode(ids[-(count // 2) :])
    prompt = loaded.prompt(ask(text, truncate="middle"), None, count)
    assert said(loaded, prompt) == said(loaded, loaded.prompt(ask(expected)))
    assert prompt.cut > 0
    uncut = loaded.prompt(ask(text), None, count)
    assert uncut.cut == 0  # a task that says nothing of it


def test_an_answer_need_not_begin_with_what_ends_it(folder):
    question, full = ask("w1 w2 w3"), [Cell("full", "full")]
    asked = bridge(folder, None)
    (usual,) = asked.answer(question, full, {"max_new_tokens": 4}, ())
    stop = asked.loaded.tokenizer.convert_ids_to_tokens(usual.token_ids[0])
    for name in ("until", "until_tokens"):
        (empty,) = asked.answer(question, full, {"max_new_tokens": 4, name: [stop]}, ())
        assert (empty.text, empty.token_ids) == ("", usual.token_ids[:1])
    least = {"max_new_tokens": 4, "min_new_tokens": 1}
    (other,) = asked.answer(question, full, {**least, "until_tokens": [stop]}, ())
    assert other.token_ids[0] != usual.token_ids[0]
    assert other.text
    (same,) = asked.answer(question, full, {**least, "until": [stop]}, ())
    assert same.token_ids[0] == usual.token_ids[0]  # a text is looked for behind it
    assert same.text.startswith(stop)
    (kept,) = asked.answer(question, full, {"max_new_tokens": 4, "until_tokens": [" \n"]}, ())
    assert kept.token_ids == usual.token_ids  # this tokenizer writes no newline
    with pytest.raises(UserError, match="min_new_tokens=2"):
        asked.answer(question, full, {**least, "min_new_tokens": 2}, ())


def test_images_behind_the_last_text_are_no_suffix(llava_folder_prompt):
    prompt, images = llava_folder_prompt
    assert prompt.context >= images
    assert not prompt.modality[len(prompt.modality) - prompt.suffix :].any()


@pytest.fixture(scope="module")
def llava_folder_prompt():
    """A prompt of the embedded model whose image follows its text, and where the image ends."""
    from harness.embedded import TINY_VLM

    image = Image.new("RGB", (128, 128))
    parts = [{"type": "text", "text": "Look", "context": True}, {"type": "image", "url": image}]
    prompt = load(str(TINY_VLM), device="cpu").prompt([{"role": "user", "content": parts}])
    return prompt, int(prompt.modality.nonzero()[-1]) + 1
