"""Tasks of lmms-eval chosen by their name: the real task on made data, scored without code of ours.

Columns and their types are those of the hub repositories that the tasks' YAML files name.
"""

from pathlib import Path
from typing import Any

import pytest
from datasets import Features, Image, List, Value
from lmms_eval import utils

from harness.errors import UserError
from harness.scoring import catalog, generic
from tests.scoring.lmms_tasks import build, picture, results, write

TEXT, NUMBER = Value("string"), Value("int64")

MMSTAR = {
    "index": NUMBER, "question": TEXT, "image": Image(), "answer": TEXT, "category": TEXT,
    "l2_category": TEXT, "meta_info": {"source": TEXT, "split": TEXT, "image_path": TEXT},
}  # fmt: skip
AI2D = {"question": TEXT, "options": List(TEXT), "answer": TEXT, "image": Image()}
SCIENCE = {
    "image": Image(), "question": TEXT, "choices": List(TEXT), "answer": Value("int8"),
    "hint": TEXT, "task": TEXT, "grade": TEXT, "subject": TEXT, "topic": TEXT, "category": TEXT,
    "skill": TEXT, "lecture": TEXT, "solution": TEXT,
}  # fmt: skip
POPE = {
    "id": TEXT, "question_id": TEXT, "question": TEXT, "answer": TEXT, "image_source": TEXT,
    "image": Image(), "category": TEXT,
}  # fmt: skip
DOCVQA = {
    "questionId": TEXT, "question": TEXT, "question_types": List(TEXT), "image": Image(),
    "docId": NUMBER, "ucsf_document_id": TEXT, "ucsf_document_page_no": TEXT,
    "answers": List(TEXT), "data_split": TEXT,
}  # fmt: skip
OCR = {
    "dataset": TEXT, "question": TEXT, "question_type": TEXT, "answer": List(TEXT),
    "image": Image(),
}  # fmt: skip
CHART = {"type": TEXT, "question": TEXT, "answer": TEXT, "image": Image()}
VET = {
    "question_id": TEXT, "image": Image(), "question": TEXT, "answer": TEXT, "image_source": TEXT,
    "capability": TEXT,
}  # fmt: skip
COLUMNS = {
    "mmstar": MMSTAR, "ai2d": AI2D, "scienceqa": SCIENCE, "scienceqa_img": SCIENCE, "pope": POPE,
    "pope_adv": POPE, "docvqa_val": DOCVQA, "docvqa_test": DOCVQA, "ocrbench": OCR,
    "chartqa": CHART, "mmvet": VET,
}  # fmt: skip
PLACES = {  # configuration and split, as the YAML files ask for them
    "mmstar": ("default", "val"), "ai2d": ("default", "test"), "pope": ("default", "test"),
    "scienceqa": ("ScienceQA-FULL", "test"), "scienceqa_img": ("ScienceQA-IMG", "test"),
    "pope_adv": ("Full", "adversarial"), "docvqa_val": ("DocVQA", "validation"),
    "docvqa_test": ("DocVQA", "test"), "ocrbench": ("default", "test"),
    "chartqa": ("default", "test"), "mmvet": ("default", "test"),
}  # fmt: skip


def made(root: Path, name: str, rows: list[dict[str, Any]]) -> Any:
    """The task on these rows; columns that a row does not give are empty, images are made."""
    columns = COLUMNS[name]
    full = [
        {**{c: picture(i) if c == "image" else None for c in columns}, **row}
        for i, row in enumerate(rows)
    ]
    return build(name, write(root, *PLACES[name], full, Features(columns)))


def star(answer: str, category: str, kind: str, number: int) -> dict[str, Any]:
    asked = "Which?\nOptions: A: cat, B: dog, C: cow, D: fox"
    return {"index": number, "question": asked, "answer": answer, "category": category,
            "l2_category": kind}  # fmt: skip


def science(answer: int) -> dict[str, Any]:
    return {"question": "Which?", "choices": ["cat", "dog", "cow"], "answer": answer, "hint": ""}


def yes_no(answer: str) -> dict[str, Any]:
    return {"question_id": "1", "question": "Is there a cat?", "answer": answer}


def paper(*answers: str) -> dict[str, Any]:
    return {"questionId": "7", "question": "What is the total?", "answers": list(answers)}


def sign(answer: str, kind: str, source: str = "IIIT5K") -> dict[str, Any]:
    return {"dataset": source, "question": "what is written?", "question_type": kind,
            "answer": [answer]}  # fmt: skip


def chart(answer: str, kind: str = "human_test") -> dict[str, Any]:
    return {"type": kind, "question": "How many?", "answer": answer}


# task, rows, answers, the scores that the task's definition gives by hand
CASES: dict[str, tuple[str, list[dict[str, Any]], list[str], list[float]]] = {
    "mmstar": (
        "mmstar",
        [star("B", "math", "geometry", 0), star("A", "math", "geometry", 1),
         star("C", "math", "statistical reasoning", 2),
         star("D", "coarse perception", "image emotion", 3)],
        ["B", "B", "The answer is C.", ""],
        [1, 0, 1, 0],
    ),
    "ai2d": (
        "ai2d",
        [{"question": "q", "options": ["x", "y", "z"], "answer": a} for a in "0122"],
        ["A", "b.", "C. z", "the last"],
        [1, 1, 1, 0],
    ),
    "scienceqa": (
        "scienceqa",
        [science(a) for a in (0, 1, 2, 0)],
        ["a", "B. dog", "A. cat", "cat"],
        [1, 1, 0, 0],
    ),
    "scienceqa_img": ("scienceqa_img", [science(a) for a in (0, 1)], ["A", "A"], [1, 0]),
    "pope": (
        "pope",
        [yes_no(a) for a in ("yes", "no", "no", "yes")],
        ["Yes", "no", "yes", "Yes."],
        [1, 1, 0, 0],
    ),
    "pope_adv": ("pope_adv", [yes_no("no")], ["no"], [1]),
    # ANLS: 1 - edits / longer length for the best reference, below one half 0
    "docvqa_val": (
        "docvqa_val",
        [paper("420"), paper("Acme Inc", "Acme"), paper("Chicago"), paper("12 May")],
        ["420", "acme", "Chicagos", "three"],
        [1, 1, 1 - 1 / 8, 0],
    ),
    "ocrbench": (
        "ocrbench",
        [sign("Exit", "Regular Text Recognition"), sign("42", "Digit String Recognition"),
         sign("a + b", "Handwritten Mathematical Expression Recognition", "HME100k"),
         sign("total", "Doc-oriented VQA")],
        ["The sign says EXIT", "24", "a+b", ""],
        [1, 0, 1, 0],
    ),
    # relaxed accuracy: numbers within 5 %, words in full
    "chartqa": (
        "chartqa",
        [chart("100"), chart("100"), chart("12%", "augmented_test"), chart("Red"),
         chart("Red", "augmented_test")],
        ["105", "106", "0.12", "red", "dark red"],
        [1, 0, 1, 1, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_answer_gets_the_score_of_the_tasks_definition(tmp_path: Path, case: str) -> None:
    name, rows, texts, expected = CASES[case]
    task = made(tmp_path / "data", name, rows)
    metrics = results(task, texts)
    pairs = zip(task.eval_docs_no_media, metrics, strict=True)
    scores = [generic.sample_score(task, document, found)[0] for document, found in pairs]
    assert scores == pytest.approx(expected)
    assert all(isinstance(score, float) for score in scores)
    theirs = generic.aggregate(task, metrics, tmp_path)
    by_kind = {r.get("l2_category"): [] for r in rows}
    for row, score in zip(rows, scores, strict=True):
        by_kind[row.get("l2_category")].append(score)
    means = [sum(values) / len(values) for values in by_kind.values()]  # MMStar's mean of means
    whole = sum(scores) / 1000 if name == "ocrbench" else sum(means) / len(means)
    assert theirs == pytest.approx(whole)
    assert generic.aggregate(task, metrics, tmp_path) == theirs  # OCRBench would count on


def test_the_metric_that_stands_for_the_task_is_the_first_that_every_answer_has(
    tmp_path: Path,
) -> None:
    chosen = {}
    for case, (name, rows, texts, _) in CASES.items():
        task = made(tmp_path / case, name, rows)
        chosen[case] = generic.metric_of(task, results(task, texts))
    assert chosen == {
        "mmstar": "average", "ai2d": "exact_match", "scienceqa": "exact_match",
        "scienceqa_img": "exact_match", "pope": "pope_accuracy", "pope_adv": "pope_accuracy",
        "docvqa_val": "anls", "ocrbench": "ocrbench_accuracy", "chartqa": "relaxed_overall",
    }  # fmt: skip


def test_the_answer_as_read_is_kept_where_the_task_tells_it(tmp_path: Path) -> None:
    task = made(tmp_path, "pope", [yes_no("yes")])
    (metrics,) = results(task, ["YES"])
    assert generic.sample_score(task, {}, metrics) == (1.0, "yes")
    other = made(tmp_path / "chart", "chartqa", [chart("5")])
    (metrics,) = results(other, ["5"])
    assert generic.sample_score(other, {}, metrics) == (1.0, None)


def settings(name: str) -> dict[str, Any]:
    return utils.load_yaml_config(str(catalog.find(name)), mode="full")


@pytest.mark.parametrize("name", [n for n in COLUMNS if n not in ("mmvet", "docvqa_test")])
def test_tasks_without_a_judge_pass_the_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("API_TYPE", raising=False)
    generic.check(name, settings(name))


def test_a_judged_task_is_refused_without_a_key_and_passes_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("API_TYPE", raising=False)
    read = settings("mmvet")
    with pytest.raises(
        UserError, match=r"task=mmvet is graded by a judge.*OPENAI_API_KEY is not set"
    ):
        generic.check("mmvet", read)
    monkeypatch.setenv("API_TYPE", "azure")
    with pytest.raises(UserError, match="AZURE_API_KEY is not set"):
        generic.check("mmvet", read)
    monkeypatch.setenv("AZURE_API_KEY", "x")
    generic.check("mmvet", read)


def test_a_judges_score_is_read_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    row = {"question_id": "v1", "question": "What?", "answer": "cat", "capability": "rec"}
    task = made(tmp_path, "mmvet", [row])
    inner = task.config.process_results.__globals__
    monkeypatch.setitem(inner, "get_chat_response", lambda *_, **__: ("0.4", "a judge"))
    (metrics,) = results(task, ["a small cat"])
    assert generic.sample_score(task, row, metrics) == (0.4, "a small cat")


def test_a_split_with_secret_answers_is_refused_with_the_open_one() -> None:
    with pytest.raises(UserError, match=r"task=docvqa_test keeps its answers secret.*docvqa_val"):
        generic.check("docvqa_test", settings("docvqa_test"))
