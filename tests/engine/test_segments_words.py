"""Segments where a token is less than a word, and those of the embedded model."""

from __future__ import annotations

import pytest
from segment_helpers import ask, told
from tiny_models import build_llama, wrap
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harness.embedded import TINY_VLM
from harness.models.loading import load
from harness.models.segments import Texts


def byte_level() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([WORDS] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core)


def metaspace() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split("\n", behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace()])
    core.decoder = decoders.Metaspace()
    core.train_from_iterator([WORDS] * 3, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=core)


HINT, ASKS = "Größer als früher?", "Which colour, red or 蓝, is the näher one?"
LINES = ("A. red", "B. 蓝色", "C. neither  ")
POST = "\n\nAnswer with the option's letter."
WORDS = f"SYSTEM: be brief. USER: {HINT} {ASKS} Options are:\n" + "\n".join(LINES) + f"{POST}\nEND"


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_tokens_of_parts_of_words_spell_the_texts_they_are_said_to_be(make):
    found = wrap(build_llama())
    found.takes_images, found.tokenizer = False, make()
    found.model.resize_token_embeddings(len(found.tokenizer))
    found.processor = found.tokenizer
    found.tokenizer.chat_template = (
        "SYSTEM: be brief. {% for m in messages %}USER: {{ m['content'] | trim }}\n{% endfor %}END"
    )
    body = f"{HINT} {ASKS} Options are:\n" + "\n".join(LINES) + POST
    texts = Texts((f"{HINT} {ASKS}", ASKS), LINES)
    prompt = found.prompt(ask(body), texts=texts)
    ids, at, spelled = prompt.inputs["input_ids"][0].tolist(), 0, []
    for name, count in told(prompt):
        spelled.append((name, " ".join(found.decode(ids[at : at + count]).split())))
        at += count
    assert spelled == [
        ("template", "SYSTEM: be brief. USER:"),
        ("question", f"{HINT} {ASKS}"),
        ("instruction", "Options are:"),
        ("options", "A. red B. 蓝色 C. neither"),
        ("instruction", "Answer with the option's letter."),
        ("template", "END"),
    ]


def test_the_embedded_model_on_a_question_with_a_hint():
    found = load(str(TINY_VLM), device="cpu")
    text = (
        "The picture is small . What color is the circle ? There are several options:\n"
        "A. red\nB. dark-blue\n\nAnswer with the option's letter from the given choices directly."
    )
    texts = Texts(
        ("The picture is small . What color is the circle ?",), ("A. red", "B. dark-blue")
    )
    prompt = found.prompt(ask(None, text), texts=texts)
    parts = told(prompt)
    assert [name for name, _ in parts] == [
        "template", "image", "template", "question", "instruction", "options", "instruction",
        "template",
    ]  # fmt: skip
    # <s> USER : · 64 · \n · two sentences of 5 and 6 words · There are several options : \n · ...
    assert [count for _, count in parts][:-2] == [3, 64, 1, 11, 6, 7]
