"""MMBench in its variants: prompts, readings and tables against an independent count."""

import random
from argparse import Namespace
from collections import defaultdict
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from omegaconf import OmegaConf

from harness import stats
from harness.scoring import catalog, mmbench_tasks
from harness.scoring.mmbench import MMBench, fits
from harness.settings.config import CONF
from tests.scoring import mmbench_data
from tests.scoring.lmms_tasks import results
from tests.scoring.mmbench_data import made

REASONS = (
    "It has a long edge. ",
    "The shape is dark.\n\n",
    "I see (A) and B here, so A cat it is.\n",
)


def said(rng: random.Random, right: str, name: str) -> str:
    """An answer, mostly right, in the form that the task asks for."""
    letter = right if rng.random() < 0.9 else rng.choice("ABCD")
    if not name.endswith("_cot"):
        odd = rng.choice(["Absolutely not", "", "答案是" + letter, "B-"])
        return rng.choice([letter, f"{letter}.", f"({letter})", f"{letter}: it", odd])
    close = rng.choice(["Answer: {}", "**Answer:** {}", "The answer is {}.", "答案：{}", "", "{}"])  # noqa: RUF001
    return rng.choice(REASONS) + close.format(letter)


DEV = ["mmbench_en_dev_static", "mmbench_cn_dev_static", "mmbench_cn_cc_static"]
DEV += ["mmbench_en_dev_cot", "mmbench_cn_dev_cot"]


@pytest.mark.parametrize("name", DEV)
@pytest.mark.parametrize("extraction", ["lmms_eval", "strict"])
def test_scores_and_tables_equal_an_independent_count(
    tmp_path: Path, name: str, extraction: str
) -> None:
    task = made(tmp_path / "data", name, 24)
    scorer = MMBench(extraction)
    documents = list(task.eval_docs_no_media)
    questions = [scorer.question(task, d, i) for i, d in enumerate(documents)]
    rng = random.Random(name)
    texts = [said(rng, question.answer, name) for question in questions]
    metrics = results(task, texts)
    judged = [scorer.judge(d, m) for d, m in zip(documents, metrics, strict=True)]

    function = task.aggregation()["gpt_eval_score"]
    wanted = {"args": Namespace(output_path=str(tmp_path))}
    arguments = wanted if "args" in signature(function).parameters else {}
    theirs = function([m["gpt_eval_score"] for m in metrics], **arguments)
    ours = scorer.total(questions, judged)
    assert (ours is None) == (extraction == "strict")
    assert ours is None or ours == pytest.approx(theirs)

    cells = stats.summarise(frame(questions, judged))
    turns: dict[int, list[bool]] = defaultdict(list)
    kinds: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for document, judgement in zip(documents, judged, strict=True):
        turns[document["index"] % 1_000_000].append(judgement.correct)
        kinds["category", document["category"]].append(judgement.correct)
        if "L2-category" in document:
            kinds["l2_category", document["L2-category"]].append(judgement.correct)
    assert sorted(len(turn) for turn in turns.values()) == [2] * 8 + [3] * 8 + [4] * 8
    assert cells["circular_accuracy"].item() == pytest.approx(
        sum(all(turn) for turn in turns.values()) / 24
    )
    assert cells["accuracy"].item() == pytest.approx(sum(j.correct for j in judged) / len(judged))
    assert 0 < cells["circular_accuracy"].item() < cells["accuracy"].item() < 1
    assert cells["unparsed_rate"].item() == pytest.approx(
        sum(j.unparsed for j in judged) / len(judged)
    )
    if extraction == "lmms_eval":
        assert cells["circular_accuracy"].item() == pytest.approx(theirs / 100)
    table = stats.abilities(frame(questions, judged))
    counted = {(row.level, row.ability): (row.n_rows, row.accuracy) for row in table.itertuples()}
    assert counted == {
        key: (len(hits), pytest.approx(sum(hits) / len(hits))) for key, hits in kinds.items()
    }


def frame(questions: list[Any], judged: list[Any]) -> pd.DataFrame:
    """The samples of one full cache with these judgements."""
    rows = [
        {
            "model": "m", "task": "t", "protocol": "paper", "method": "full", "ratio": 0.0,
            "budget": None, "control": None, "cell_key": "k", "row": row, "index": q.index,
            "question_id": q.question_id, "category": q.category, "l2_category": q.l2_category,
            "parsed": j.parsed, "unparsed": j.unparsed, "correct": j.correct,
        }
        for row, (q, j) in enumerate(zip(questions, judged, strict=True))
    ]  # fmt: skip
    made = pd.DataFrame(rows)
    for name in stats.REQUIRED:
        if name not in made:
            made[name] = pd.NA if name == "fallback" else 1.0
    if "score" not in made:
        made["score"] = made["correct"].astype(float)
    return made


def test_the_chinese_prompt_is_lmms_evals_but_for_the_word_nan(tmp_path: Path) -> None:
    ours = made(tmp_path / "a", "mmbench_cn_dev_static")
    marked = made(tmp_path / "b", "mmbench_cn_dev_static", missing="nan")
    theirs = made(tmp_path / "c", "mmbench_cn_dev")
    traps = made(tmp_path / "d", "mmbench_cn_dev", missing="nan")
    for number, document in enumerate(ours.eval_docs_no_media):
        text = ours.doc_to_text(document)
        assert text == theirs.doc_to_text(theirs.eval_docs_no_media[number])
        assert text == marked.doc_to_text(marked.eval_docs_no_media[number])
        asked, hinted = document["question"], document["hint"] is not None
        assert text.startswith("请仔细看。 " + asked if hinted else asked)
        assert text.endswith("\n\n请直接使用所提供的选项字母作为答案回答。")
        if not hinted:
            assert traps.doc_to_text(traps.eval_docs_no_media[number]).startswith("nan ")
    first = ours.doc_to_text(ours.eval_docs_no_media[0])
    assert first == (
        "形状0是什么颜色 There are several options:\nA. 红色\nB. 绿色\n\n"
        "请直接使用所提供的选项字母作为答案回答。"
    )


def test_a_question_shows_the_options_that_are_there(tmp_path: Path) -> None:
    for name, missing in (("a", None), ("b", "nan")):
        task = made(tmp_path / name, "mmbench_cn_dev_static", missing=missing)
        for row, document in enumerate(task.eval_docs_no_media):
            question = MMBench().question(task, document, row)
            assert question.letters == tuple("ABCD"[: 2 + question.question_id % 3])


@pytest.mark.parametrize("name", ["mmbench_en_dev_cot", "mmbench_cn_dev_cot"])
def test_a_reason_is_asked_for_and_has_room(tmp_path: Path, name: str) -> None:
    task = made(tmp_path, name)
    direct = made(tmp_path / "direct", name.replace("_cot", "_static"))
    for document, plain in zip(task.eval_docs_no_media, direct.eval_docs_no_media, strict=True):
        text, other = task.doc_to_text(document), direct.doc_to_text(plain)
        same = text.rsplit("\n", 1)[0]
        assert other.startswith(same + "\n\n")  # the same question, another request
        assert not text.endswith(other.rsplit("\n", 1)[1])
        assert ("Answer: " in text) == ("_en_" in name)
        assert ("答案：" in text) == ("_cn_" in name)  # noqa: RUF001
    assert task.config.generation_kwargs["max_new_tokens"] == 512
    assert task.config.generation_kwargs["until"] == []


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("The cat is (A) grey. B is wrong.\nAnswer: C", "C"),
        ("**Answer:** C", "C"),
        ("**Answer: C**", "C"),
        ("Answer: (C)", "(C)"),
        ("Answer:\nC", "C"),
        ("answer: c. blue", "c. blue"),
        ("The final answer is C. cat", "C. cat"),
        ("Answer: A\nNo, wait.\nAnswer: C.", "C"),
        ("Answer: C\nB was close.", "C"),
        ("I first thought Answer: A.\n\nC", "C"),
        ("Reasons.\n(C)", "(C)"),
        ("理由。\n答案：C。", "C"),  # noqa: RUF001
        ("正确答案是C", "C"),
        ("答案为：C", "C"),  # noqa: RUF001
        ("答案:  **C**", "C"),
        ("A cat, then B, and in the end (C) fits", ""),  # cut off: no answer
        ("The unanswered question: A", ""),
        ("", ""),
    ],
)
def test_the_final_answer_of_a_chain_of_thought(text: str, final: str) -> None:
    assert mmbench_tasks.final_answer(text) == final


def test_a_chain_that_was_cut_off_is_unparsed_in_both_readings(tmp_path: Path) -> None:
    task = made(tmp_path, "mmbench_en_dev_cot")
    documents = list(task.eval_docs_no_media)
    metrics = results(task, ["It is red, so A or (B)"] * len(documents))
    for document, found in zip(documents, metrics, strict=True):
        for judged in MMBench().both(document, found):
            assert judged.unparsed
            assert not judged.correct


class Told:
    """A task that tells its columns and metrics."""

    def __init__(self, columns: list[str], *metrics: str) -> None:
        self.eval_docs_no_media = Dataset.from_dict({name: ["1"] for name in columns})
        self.aggregation = lambda: dict.fromkeys(metrics)


def test_the_family_is_told_by_its_columns_and_its_metric() -> None:
    columns = list(mmbench_data.rows("cn", 1)[0])
    assert fits(Told(columns, "gpt_eval_score", "submission"))
    assert fits(Told(list(mmbench_data.CULTURE), "gpt_eval_score"))
    assert not fits(Told(["index", "question", "answer", "category"], "gpt_eval_score"))
    assert not fits(Told(columns, "accuracy"))  # MMT-Bench has these columns too
    assert not fits(Told([*columns, "E"], "gpt_eval_score"))


def test_every_configured_task_is_there_and_needs_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a judge was asked")

    monkeypatch.setattr(MMBench_Evaluator, "get_chat_response", refuse)
    files = [p for p in (CONF / "task").glob("mmbench_*.yaml") if "mini" not in p.stem]
    assert {p.stem for p in files} >= {
        "mmbench_en_dev", "mmbench_cn_dev", "mmbench_cn_cc", "mmbench_en_dev_cot",
        "mmbench_cn_dev_cot", "mmbench_en_test", "mmbench_cn_test",
    }  # fmt: skip
    for path in files:
        node = OmegaConf.to_container(OmegaConf.load(path))
        assert path.read_text().startswith(f"# @package tasks.{path.stem}\n")
        assert node["scorer"] == "mmbench"
        assert node["images"]
        assert catalog.kind(node["lmms_task"]) == "task"
