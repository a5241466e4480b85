"""Which part of a prompt each token belongs to: spans written by hand, for many templates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from segment_helpers import ask, told
from tiny_models import IMAGE, build_llama, build_llava, make_tokenizer, wrap

from harness.models import chat
from harness.models.segments import Encoded, Texts, segments

QUESTION, OPTIONS = "w40 w41", ("A w42", "B w43 w44")
TEXT = f"{QUESTION} w50 {OPTIONS[0]} {OPTIONS[1]} w60 w61"
TEXTS = Texts((QUESTION,), OPTIONS)
# What users say begins and ends elsewhere in each; tokens are words.
PLAIN = (
    "<s> {% for m in messages %}{{ m['role'] }} {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image> {% else %}{{ p['text'] | trim }} {% endif %}"
    "{% endfor %}</s> {% endfor %}{% if add_generation_prompt %}w70 w71{% endif %}"
)
IMAGES_FIRST = (
    "{% for m in messages %}w80 {% for p in m['content'] if p['type'] == 'image' %}w81 <image> w82 "
    "{% endfor %}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }} {% endfor %}"
    "w83 {% endfor %}w84 w85 w86"
)
LOUD = PLAIN.replace("trim", "upper")


class Expanding:
    """A processor that renders a template and rewrites the text, images as several tokens."""

    def __init__(self, tokenizer, template: str, rewrites: dict[str, str]) -> None:
        self.tokenizer, self.rewrites = tokenizer, rewrites
        tokenizer.chat_template = template

    def apply_chat_template(self, messages, **_):
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )

    def __call__(self, text, images, **_):
        for old, new in self.rewrites.items():
            text = [text[0].replace(old, new)]
        return self.tokenizer(text, return_tensors="pt")


def loaded(template: str = PLAIN, **rewrites: str):
    """A LLaVA whose placeholder is <image> in the prompt, and a processor of the kind."""
    found = wrap(build_llava())
    rewrites = {"<image>": rewrites.pop("image", "<image> <image> <image>"), **rewrites}
    found.processor = Expanding(found.tokenizer, template, rewrites)
    found.model.config.image_token_id = found.tokenizer.convert_tokens_to_ids("<image>")
    return found


ASKED = [("question", 2), ("instruction", 1), ("options", 5), ("instruction", 2)]


def test_the_parts_of_a_question_about_an_image():
    prompt = loaded().prompt(ask(None, TEXT), texts=TEXTS)
    # <s> user, the image, what the user said, </s> w70 w71
    assert told(prompt) == [("template", 2), ("image", 3), *ASKED, ("template", 3)]


def test_a_system_text_and_an_earlier_turn_are_told_apart():
    messages = [
        {"role": "system", "content": "w1 w2"},
        *ask("w3 w4 w5"),
        {"role": "assistant", "content": [{"type": "text", "text": "w6"}]},
        *ask(None, TEXT),
    ]
    assert told(loaded().prompt(messages, texts=TEXTS)) == [
        ("template", 6),  # <s> system w1 w2 </s> user
        ("instruction", 3),
        ("template", 5),  # </s> assistant w6 </s> user
        ("image", 3),
        *ASKED,
        ("template", 3),
    ]


def test_the_beginning_of_an_answer_is_no_part_of_what_users_said():
    for words, count in ((QUESTION, 2), (TEXT, 10)):
        prefix = {"role": "assistant", "content": [{"type": "text", "text": f" {words}"}]}
        prompt = loaded().prompt([*ask(None, TEXT), prefix], texts=TEXTS)
        assert told(prompt) == [("template", 2), ("image", 3), *ASKED, ("template", 3 + count)]


def test_a_template_that_moves_images_to_the_front():
    prompt = loaded(IMAGES_FIRST).prompt(ask("w20 w21", None, TEXT), texts=TEXTS)
    assert told(prompt) == [
        ("template", 2),
        ("image", 3),
        ("template", 1),
        ("instruction", 2),
        *ASKED,
        ("template", 4),
    ]


@pytest.mark.parametrize(
    ("image", "shape"),
    [
        ("<image>", [("image", 1)]),
        ("w80 <image> <image> w81", [("template", 1), ("image", 2), ("template", 1)]),
        ("<image> w9 <image> w9", [("image", 1), ("template", 1), ("image", 1), ("template", 1)]),
        ("w40 <image>", [("template", 1), ("image", 1)]),  # a token that the question begins with
    ],
)
def test_what_a_processor_adds_to_several_images_is_template(image, shape):
    prompt = loaded(image=image).prompt(ask("w1", None, "w2", None, TEXT), texts=TEXTS)
    one, two = ("instruction", 1), ("instruction", 1)
    assert told(prompt) == [("template", 2), one, *shape, two, *shape, *ASKED, ("template", 3)]


def test_images_that_touch_are_one_run():
    prompt = loaded().prompt(ask(None, None, TEXT), texts=TEXTS)
    assert told(prompt) == [("template", 2), ("image", 6), *ASKED, ("template", 3)]


def test_what_cannot_be_aligned_is_unknown_and_the_rest_is_not():
    found = loaded(PLAIN, **{"w2 w3": "w4 w5"})
    prompt = found.prompt(ask("w1", None, "w2 w3", None, TEXT), texts=TEXTS)
    start = [("template", 2), ("instruction", 1), ("image", 3), ("unknown", 2), ("image", 3)]
    assert told(prompt) == [*start, *ASKED, ("template", 3)]


def test_a_placeholder_that_is_rewritten_stays_template():
    found = loaded(PLAIN.replace("<image>", "w30 w31"), **{"w30 w31": "w32 <image> w33"})
    start = [("template", 3), ("image", 1), ("template", 1)]
    assert told(found.prompt(ask(None, TEXT), texts=TEXTS)) == [*start, *ASKED, ("template", 3)]


def test_a_template_that_changes_what_users_said_leaves_it_unknown():
    prompt = loaded(LOUD).prompt(ask(TEXT), texts=TEXTS)
    assert told(prompt) == [("unknown", 15)]


def test_a_tokenizer_without_offsets_leaves_all_text_unknown(monkeypatch):
    found = loaded()
    monkeypatch.setattr(type(found.tokenizer), "is_fast", False)
    prompt = found.prompt(ask(None, TEXT), texts=TEXTS)
    assert told(prompt) == [("unknown", 2), ("image", 3), ("unknown", 13)]
    assert prompt.suffix == 3


def test_without_texts_all_that_a_user_says_is_an_instruction():
    assert told(loaded().prompt(ask(TEXT))) == [
        ("template", 2),
        ("instruction", 10),
        ("template", 3),
    ]


def test_the_first_wording_that_occurs_is_the_question_and_it_is_the_last_occurrence():
    other = Texts(("w90 w91", "w40"), ())
    prompt = loaded().prompt(ask("w40 w1 w40 w2"), texts=other)
    body = [("instruction", 2), ("question", 1), ("instruction", 1)]
    assert told(prompt) == [("template", 2), *body, ("template", 3)]
    # The same words after the options do not count.
    prompt = loaded().prompt(ask(f"{TEXT} {QUESTION}"), texts=TEXTS)
    body = [*ASKED[:-1], ("instruction", 4)]
    assert told(prompt) == [("template", 2), *body, ("template", 3)]


def test_options_that_repeat_one_another_begin_with_the_first():
    texts = Texts((), ("w42", "w42 w43"))
    body = [("instruction", 1), ("options", 3)]
    prompt = loaded().prompt(ask("w1 w42 w42 w43"), texts=texts)
    assert told(prompt) == [("template", 2), *body, ("template", 3)]


def test_options_that_are_not_there_leave_the_rest_unknown():
    prompt = loaded().prompt(ask(TEXT), texts=Texts((QUESTION,), ("A w42", "B w45")))
    body = [("question", 2), ("unknown", 8)]
    assert told(prompt) == [("template", 2), *body, ("template", 3)]


def test_a_marked_context_is_told_and_holds_no_question():
    messages = ask("  w1 w40 w41 w2", f" {QUESTION} w3", context=0)
    body = [("context", 4), ("question", 2), ("instruction", 1)]
    assert told(loaded().prompt(messages, texts=Texts((QUESTION,)))) == [
        ("template", 2),
        *body,
        ("template", 3),
    ]
    only = ask("w1 w40 w41 w2", " w3", context=0)
    assert told(loaded().prompt(only, texts=Texts((QUESTION,)))) == [
        ("template", 2),
        ("context", 4),
        ("instruction", 1),
        ("template", 3),
    ]


def test_a_context_that_is_only_a_mark_behind_images_is_none():
    messages = ask(None, "\n", f"{QUESTION}", context=1)
    assert told(loaded().prompt(messages, texts=Texts((QUESTION,)))) == [
        ("template", 2),
        ("image", 3),
        ("question", 2),
        ("template", 3),
    ]


@pytest.mark.parametrize("template", [True, False])
def test_a_text_model_cut_to_fit(template):
    found = wrap(build_llama())
    found.takes_images, found.processor = False, found.tokenizer
    found.tokenizer.chat_template = "<s> {% for m in messages %}{{ m['content'] }} w70 {% endfor %}"
    words = " ".join(f"w{i}" for i in range(30))
    messages = ask(words, f" {QUESTION} w60", context=0)
    messages[0] |= {"truncate": "middle", "template": template}
    prompt = found.prompt(messages, 15, texts=Texts((QUESTION,)))
    ends = ([("template", 1)], [("template", 1)]) if template else ([], [])
    context = prompt.context - len(ends[0])
    body = [("context", context), ("question", 2), ("instruction", 1)]
    assert prompt.cut
    assert context > 4
    assert told(prompt) == [*ends[0], *body, *ends[1]]


def test_a_first_token_that_only_the_prompt_has_is_template():
    said = chat.read(ask("w1 w2"))
    encoded = Encoded([5, 6], [(0, 2), (3, 5)])
    found = segments("w1 w2", said, Texts(("w2",)), [1, 5, 6], [0, 0, 0], encoded)
    assert found == [("template", 1), ("instruction", 1), ("question", 1)]


def test_segments_are_no_part_of_what_the_model_sees():
    found = loaded()
    with_texts = found.prompt(ask(None, TEXT), texts=TEXTS)
    without = found.prompt(ask(None, TEXT))
    assert replace(with_texts, inputs={}, modality=torch.tensor(0), segments=[]) == replace(
        without, inputs={}, modality=torch.tensor(0), segments=[]
    )
    assert with_texts.inputs.keys() == without.inputs.keys()
    for name, value in without.inputs.items():
        assert torch.equal(value, with_texts.inputs[name])


def test_tokens_are_spelled_one_by_one():
    tokenizer = make_tokenizer()
    found = wrap(build_llava())
    assert found.pieces([1, IMAGE, 4]) == ["<s>", tokenizer.decode([IMAGE]), "A"]
