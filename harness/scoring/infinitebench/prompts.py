"""InfiniteBench's released prompts for open models and how they become chat messages.

The prompts are protocol data, quoted exactly: the set that src/prompt.py of
github.com/OpenBMB/InfiniteBench (MIT) gives YaRN-Mistral, Yi and ChatGLM3, and that ReST-KV's runs
use too. They end where the answer begins, so they are continued as they are, in no chat template.
Must not know metrics, models or the store.
"""

# ruff: noqa: RUF001 - Chinese punctuation is meant

import re
from collections.abc import Mapping
from typing import Any

from harness.scoring.longbench.prompts import Document, Messages, halves, message

PROMPTS: dict[str, str] = {
    "passkey": (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
        "it. I will quiz you about the important information.\n\n"
        "{context}\n\n"
        "{input}\n\n"
        "The pass key is"
    ),
    "number_string": (
        "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz "
        "you about the important information there.\n\n"
        "{context}\n\n"
        "{input}\n\n"
        "The sequence of digits is"
    ),
    "kv_retrieval": (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        "{context}\n\n"
        "{input}"
    ),
    "longbook_sum_eng": "Summarize the book below.\n\n{context}\n\nSummary:",
    "longbook_choice_eng": (
        "Read the book and answer the question.\n\n"
        "{context}\n\n"
        "Question: {question}\n"
        "A. {OPTION_A}\n"
        "B. {OPTION_B}\n"
        "C. {OPTION_C}\n"
        "D. {OPTION_D}\n\n"
        "The letter of the correct answer is"
    ),
    "longbook_qa_eng": (
        "Read the book and answer the question. Be very concise in your answer.\n\n"
        "{context}\n\n"
        "Question: {question}\n"
        "Answer:"
    ),
    "longbook_qa_chn": "阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{question}\n答案：",
    "math_find": "{prefix}\n\n{context}\n\n{input}",
    "math_calc": (
        "Let us calculate the intermediate values of an expression.\n\n"
        "Expression: 1 + 3 + 4\n"
        "Values: [1, 4, 8]\n\n"
        "Expression: 8 - 3 + 2 - 4\n"
        "Values: [8, 5, 7, 3]\n\n"
        "Expression: {context}\n"
        "Values:"
    ),
    "code_run": (
        "There is a function called {func} in the following Python code.\n\n"
        "{context}\n\n"
        "Please compute the exact value of {func_call}. The value of {func_call} is"
    ),
    "code_debug": (
        "Following is a Python code where exactly one of the functions/methods has a deliberate "
        "error that makes it crash.\n\n"
        "{context}\n\n"
        "Options:\n"
        "A. {OPTION_A}\n"
        "B. {OPTION_B}\n"
        "C. {OPTION_C}\n"
        "D. {OPTION_D}\n\n"
        "The correct option is:"
    ),
    "longdialogue_qa_eng": (
        "Below is a dialogue script where one random occurrence of a character name is replaced "
        'with "$$MASK$$", and you should try to guess who that character is.\n\n'
        "{context}\n\n"
        "The name that has been replaced with $$MASK$$ is likely"
    ),
}


def doc_to_text(doc: Document, settings: Mapping[str, Any]) -> str:
    """The official prompt of a row.

    Args:
        doc: a row with `context`, `input` and `options`.
        settings: the task's lmms_eval_specific_kwargs; its `prompt` is a name in `PROMPTS`.
    """
    name = str(settings["prompt"])
    return "".join(halves(PROMPTS[name], fields(name, doc)))


def doc_to_messages(doc: Document, lmms_eval_specific_kwargs: Mapping[str, Any]) -> Messages:
    """The prompt as one unwrapped user message, parted where the long context ends.

    Args:
        doc, lmms_eval_specific_kwargs: as in `doc_to_text`; lmms-eval gives the latter by name.
    """
    name = str(lmms_eval_specific_kwargs["prompt"])
    return message(*halves(PROMPTS[name], fields(name, doc)), template=False)


def fields(name: str, doc: Document) -> dict[str, Any]:
    """The values of a prompt's placeholders, some of which are read from the row's question.

    Raises:
        ValueError: the question of a code_run or math_find row is not in the released form.
    """
    values = {"context": doc["context"], "input": doc["input"], "question": doc["input"]}
    values |= {f"OPTION_{letter}": o for letter, o in zip("ABCD", doc["options"], strict=False)}
    if name == "code_run":
        values["func_call"] = _found(r"func_[0-9]+\(-?[0-9]+\)", doc["input"])
        values["func"] = values["func_call"].split("(")[0]
    elif name == "math_find":
        target = _found(r"The .+ of", doc["input"]).removesuffix(" of").lower()
        values["prefix"] = f"What is {target} in the following list?"
    return values


def _found(pattern: str, question: str) -> str:
    match = re.search(pattern, question)
    if match is None:
        raise ValueError(f"The question {question!r} has no {pattern}: use the released data.")
    return match[0]
