"""Every RULER task solved from its prompt, its length counted again, drawn in other processes."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.scoring.ruler.lengths import TokenCounter
from harness.scoring.ruler.tasks import TASKS, Ruler
from tests.scoring import generated_data, ruler_solvers
from tests.scoring.generated_data import TOKENIZERS, tokenizer

GENERATE = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
SOLVERS: dict[str, Callable[[str, str], list[str]]] = {
    "niah": ruler_solvers.needles,
    "vt": ruler_solvers.variables,
    "cwe": ruler_solvers.common_words,
    "fwe": ruler_solvers.frequent_words,
}
DRAWN = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
SOLVED = tuple(task for task in TASKS if not task.startswith("qa"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return generated_data.sources(tmp_path_factory.mktemp("sources"))


def draw(
    task: str, length: int, sources: dict[str, str], name: str = "bpe", samples: int = 6, seed=42
) -> list[dict[str, Any]]:
    options = {"task": f"ruler_{task}", "length": length, "samples": samples, "sources": sources}
    return list(Ruler().rows(options, tokenizer(name), seed))


def last_question(row: dict[str, Any]) -> tuple[str, str]:
    """Context and question, without a solved example before them."""
    context = row["input"][: row["context_end"]]
    for opening in ("Memorize and track", "Below is a numbered"):
        context = context[max(0, context.rfind(opening)) :]
    return context, row["input"][row["context_end"] :]


@pytest.mark.parametrize("task", SOLVED)
@pytest.mark.parametrize("length", [2048, 4096])
def test_solved_from_the_prompt(task: str, length: int, sources: dict[str, str]) -> None:
    for row in draw(task, length, sources):
        found = SOLVERS[task.split("_")[0]](*last_question(row))
        assert sorted(found) == sorted(row["outputs"])


@pytest.mark.parametrize(("task", "answers"), [("vt", 5), ("cwe", 10)])
def test_examples_are_solved_too(task: str, answers: int, sources: dict[str, str]) -> None:
    """The example before the question gives the answers that its own context has."""
    for row in draw(task, 4096, sources, samples=3):
        opening = row["input"][:24]
        example = row["input"][: row["input"].rindex(opening)]
        context, rest = re.split(r"(?=\nQuestion: )", example)
        question, given = re.split(r" Answer: [^:]*: ", rest)
        words = re.sub(r"\d+\. ", " ", given).split()
        assert sorted(SOLVERS[task](context, question)) == sorted(words)
        assert len(words) == answers
        assert not set(words) & set(row["outputs"]) or task == "cwe"


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_question_answering_shows_what_answers(task: str, sources: dict[str, str]) -> None:
    rows = draw(task, 2048, sources)
    assert len({row["input"] for row in rows}) == len(rows)
    for number, row in enumerate(rows):
        context, question = row["input"][: row["context_end"]], row["input"][row["context_end"] :]
        shown = re.split(r"\n*Document \d+:\n", context)[1:]
        assert len(set(shown)) == len(shown) > 1
        assert all(any(answer in text for text in shown) for answer in row["outputs"])
        if task == "qa_2":
            assert sum(f"Fact {number}-" in text for text in shown) == 10
            assert f"Which bridge is {number}?" in question
        assert question.startswith("\n\nAnswer the question based on the given documents. Only")


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_few_documents_are_repeated(task: str, sources: dict[str, str]) -> None:
    """A length beyond all documents of the data set shows them again, as published."""
    row = draw(task, 16384, sources, samples=1)[0]
    assert row["length"] > 0.9 * 16384
    assert row["outputs"][0] in row["input"]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("task", TASKS)
def test_length_is_kept(task: str, name: str, sources: dict[str, str]) -> None:
    length = 8192 if name == "bytes" or task == "cwe" else 2048
    if name == "bytes" and task == "cwe":
        length = 16384
    rows = draw(task, length, sources, name, samples=8)
    reserve = TokenCounter(tokenizer(name)).reserve
    for row in rows:
        read = len(tokenizer(name)(row["input"] + row["answer_prefix"])["input_ids"])
        assert row["length"] == read + GENERATE[task.split("_")[0]] + reserve
        assert 0.9 * length <= row["length"] <= length == row["max_length"]


def test_room_for_the_chat_template() -> None:
    made = tokenizer("bpe_chat")
    count = TokenCounter(made)
    messages = [{"role": "user", "content": "Hello"}]
    text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    added = len(made(text)["input_ids"]) - len(made("Hello")["input_ids"])
    assert added <= count.reserve < added + 16
    assert TokenCounter(tokenizer("bpe")).reserve == 0


@pytest.mark.parametrize("form", ["{% for m in messages %}{{ m.content[0].text }} end{% endfor %}"])
def test_a_template_for_parts_of_content_is_counted_as_well(form: str) -> None:
    made = copy(tokenizer("bpe"))
    made.chat_template = form
    assert TokenCounter(made).reserve == 16


@pytest.mark.parametrize("form", ["{{ raise_exception('no users') }}", "nothing of anybody"])
def test_a_template_that_shows_no_user_is_refused(form: str) -> None:
    made = copy(tokenizer("bpe"))
    made.chat_template = form
    with pytest.raises(UserError, match="the room it takes is unknown"):
        TokenCounter(made)


@pytest.mark.parametrize(
    "task",
    [
        "niah_multikey_3",
        "cwe",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("niah_multikey_2", "fwe", "vt")),
    ],
)
def test_long_prompts_are_full(task: str, sources: dict[str, str]) -> None:
    rows = draw(task, 32768, sources, "words", samples=3)
    assert all(0.93 * 32768 < row["length"] <= 32768 for row in rows)


def test_more_words_than_the_list_has(sources: dict[str, str]) -> None:
    row = draw("cwe", 131072, sources, "words", samples=1)[0]
    context, question = last_question(row)
    assert sorted(ruler_solvers.common_words(context, question)) == sorted(row["outputs"])
    assert len(set(re.findall(r"\d+\. (\S+)", context))) > 8166


@pytest.mark.parametrize("task", TASKS)
def test_too_short_is_refused_with_a_length_that_fits(task: str, sources: dict[str, str]) -> None:
    draw(task, 4096, sources, samples=1)  # words and tokenizer are loaded
    start = time.process_time()
    with pytest.raises(UserError, match=f"^ruler_{task} does not fit in 60 tokens: .*") as error:
        draw(task, 60, sources, samples=500)
    assert time.process_time() - start < 5
    needed = int(str(error.value).removesuffix(".").rsplit(" ", 1)[1])
    assert len(draw(task, needed, sources, samples=8)) == 8
    with pytest.raises(UserError):
        draw(task, needed - 128, sources)


def test_a_tokenizer_without_tokens_is_refused() -> None:
    class Empty:
        chat_template = None

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[] for _ in texts]}

    options = {"task": "ruler_niah_single_1", "length": 4096, "samples": 1}
    with pytest.raises(UserError, match="cannot be made with this tokenizer"):
        list(Ruler().rows(options, Empty(), 42))


def test_unknown_task_is_refused() -> None:
    with pytest.raises(UserError, match=r"task=ruler_niah_9 is not one of RULER: .* qa_2"):
        Ruler().needs({"task": "ruler_niah_9"})


def digest(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


SCRIPT = """
import json, sys
from tests.scoring.test_ruler_tasks import DRAWN, digest, draw
order = reversed(DRAWN)
print(json.dumps({task: digest(draw(task, 1024, {}, "words")) for task in order}))
"""


@pytest.mark.slow
def test_the_same_in_every_process_and_order() -> None:
    random.seed(7)
    here = {}
    for task in DRAWN:
        random.random()
        here[task] = digest(draw(task, 1024, {}, "words"))
        assert here[task] == digest(draw(task, 1024, {}, "words"))
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == here
    assert len(set(here.values())) == len(DRAWN)


def test_seed_and_sample_number_decide(sources: dict[str, str]) -> None:
    for task in ("niah_single_2", "vt", "cwe", "fwe", "qa_1"):
        ten, other = draw(task, 2048, sources, samples=10), draw(task, 2048, sources, seed=1)
        assert [row["input"] for row in ten[:6]] == [
            row["input"] for row in draw(task, 2048, sources, samples=6)
        ]
        assert ten[0]["input"] != other[0]["input"]
        assert len({row["input"] for row in ten}) == 10
        assert [row["index"] for row in ten] == list(range(10))


@pytest.mark.parametrize("task", ["niah_single_2", "niah_multivalue"])
def test_essays_stay_as_they_are(task: str, sources: dict[str, str]) -> None:
    """Without its needles, the context is the beginning of the essays, spaces made one."""
    folder = Path(sources["essays"])
    text = " ".join("".join(f.read_text() for f in sorted(folder.glob("*.txt"))).split())
    for row in draw(task, 2048, sources, samples=3):
        context = row["input"][: row["context_end"]].split("afterwards.\n", 1)[1]
        hidden = ruler_solvers.NEEDLE.sub("", context)
        assert text.startswith(" ".join(hidden.split()))


def test_needles_reach_all_depths(sources: dict[str, str]) -> None:
    for task in ("niah_single_1", "niah_single_2", "niah_multikey_2"):
        rows = draw(task, 2048, sources, samples=60)
        depths = [row["input"].index(row["outputs"][0]) / row["context_end"] for row in rows]
        assert min(depths) < 0.25
        assert max(depths) > 0.75
