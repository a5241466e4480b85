"""LongBench's prompts against the released file, and how a row fills and parts them."""

import hashlib

import pytest

from harness.scoring.longbench.prompts import PROMPTS, doc_to_messages, doc_to_text

# sha256 of every value in the release's config/dataset2prompt.json (commit 2e00731).
RELEASED = {
    "narrativeqa": "aada7ed24b06abac",
    "qasper": "0fbdd123fe7f83d6",
    "multifieldqa_en": "20b4666a2de8a1f7",
    "multifieldqa_zh": "344b3a4e557cd547",
    "hotpotqa": "9ec4ae308865bd0c",
    "2wikimqa": "9ec4ae308865bd0c",
    "musique": "9ec4ae308865bd0c",
    "dureader": "ae53329f51b17908",
    "gov_report": "91c25d585b189ced",
    "qmsum": "dca23b678fe0183b",
    "multi_news": "2af3f28c40b902e6",
    "vcsum": "3e5d8241bc9b512e",
    "trec": "0eff8bebdba99d91",
    "triviaqa": "00a802e6377e72fc",
    "samsum": "a68d884234907eef",
    "lsht": "f3edabdf7fae53d6",
    "passage_count": "986550b6c61009c6",
    "passage_retrieval_en": "39b96b7fa52bdd2a",
    "passage_retrieval_zh": "c1e2346e245eb365",
    "lcc": "6a1f24cf0bb83cd9",
    "repobench-p": "ee9ec182ea5ffeb7",
}
AFTER_CONTEXT = {  # what follows the long context, where the question begins
    "narrativeqa": "\n\nNow, answer the question based on the story asconcisely as you can, using "
    "a single phrase if possible. Do not provide any explanation.\n\nQuestion: Why?\n\nAnswer:",
    "multifieldqa_en": "\n\nNow, answer the following question based on the above text, only give "
    "me the answer and do not output any other words.\n\nQuestion: Why?\nAnswer:",
    "vcsum": "\n\n会议总结：",  # noqa: RUF001
    "trec": "\nWhy?",
    "triviaqa": "\n\nWhy?",
    "samsum": "\n\nWhy?",
    "lsht": "\nWhy?",
    "lcc": "Next line of code:\n",
    "repobench-p": "Why?Next line of code:\n",
}
CONTEXT = "Long {input} text"  # its braces are no placeholder


@pytest.mark.parametrize("name", RELEASED)
def test_the_prompt_is_the_released_one(name: str) -> None:
    assert hashlib.sha256(PROMPTS[name].encode()).hexdigest()[:16] == RELEASED[name]


def test_there_are_21_prompts() -> None:
    assert sorted(PROMPTS) == sorted(RELEASED)
    assert len(PROMPTS) == 21


@pytest.mark.parametrize("name", RELEASED)
def test_a_row_fills_and_parts_its_prompt(name: str) -> None:
    row = {"context": CONTEXT, "input": "Why?", "dataset": f"{name}_e"}
    (message,) = doc_to_messages(row)
    before, after = (part["text"] for part in message["content"])
    full = PROMPTS[name].replace("{input}", "Why?").replace("{context}", CONTEXT)
    assert before + after == full == doc_to_text(row)
    assert before.endswith(CONTEXT)
    assert before.count(CONTEXT) == 1
    assert CONTEXT not in after
    assert after == AFTER_CONTEXT.get(name, after)
    assert [part.get("context", False) for part in message["content"]] == [True, False]


def test_the_task_file_names_the_prompt_whatever_the_row_says() -> None:
    row = {"context": "c", "input": "i", "dataset": "trec"}
    settings = {"prompt": "lcc"}
    expected = "Please complete the code given below. \ncNext line of code:\n"
    assert doc_to_text(row, settings) == expected
    (message,) = doc_to_messages(row, settings)
    assert "".join(part["text"] for part in message["content"]) == expected
