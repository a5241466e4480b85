"""Every task of this project scores whatever a model says, between 0 and 1."""

import math

import pytest

from harness.scoring.benchmark import Benchmark
from harness.scoring.infinitebench import metrics
from harness.scoring.needle import visual
from harness.settings.config import TaskConfig
from tests.run.fakes import write_mmbench
from tests.run.test_hostile_answers import HOSTILE
from tests.scoring.longbench_data import CASES, write_longbench
from tests.scoring.tasks import build, own_data, score

ODD = (
    *HOSTILE,
    "\u00b2",
    "\u0663",
    "1" * 5000,
    "1e999",
    "-0",
    "paragraph " + "7" * 5000,
    "\u6bb5\u843d\u4e5d",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    with own_data(tmp_path_factory.mktemp("data")) as root:
        yield write_longbench(root)


@pytest.mark.parametrize("name", CASES)
def test_longbench_scores_any_answer(archive, name: str) -> None:
    task = build(f"longbench_{name}")
    document = next(iter(task.eval_docs_no_media))
    for text in ODD:
        for value in score(task, document, text[:3000]).values():
            assert 0 <= value <= 1
            assert math.isfinite(value)


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        (metrics.first_number, ["7"]), (metrics.value, ["7"]), (metrics.speaker, ["TOM"]),
        (metrics.last_number, ["7"]), (metrics.number, ["7"]), (metrics.leading_share, [[7, 8]]),
        (metrics.debug_choice, ["f", "A"]), (metrics.book_choice, ["at sea"]),
        (metrics.qa_f1, ["Tom"]), (metrics.character_f1, ["\u4e2d"]), (metrics.rouge_lsum, ["Tom"]),
        (visual.process_results, "7"),
    ],
)  # fmt: skip
def test_infinitebench_and_the_image_needle_score_any_answer(rule, answer) -> None:
    document = {"answer": answer, "options": ["f", "g", "h", "at sea"]}
    for text in ODD:
        (value,) = rule(document, [text[:5000]]).values()
        assert 0 <= value <= 1


def test_an_answer_that_stops_a_tasks_own_functions_counts_as_none(tmp_path) -> None:
    overrides = {"dataset_path": str(write_mmbench(tmp_path)), "dataset_kwargs": {}}
    config = TaskConfig("mmbench_en_dev_static", scorer="mmbench", overrides=overrides)
    benchmark = Benchmark("mini", config)
    whole = benchmark.task.process_results

    def brittle(document, results):
        return whole(document, [results[0] if results[0] != "B" else 1 / 0])

    benchmark.task.process_results = brittle
    texts = [
        "B" if row % 2 else question.answer for row, question in enumerate(benchmark.questions)
    ]
    judged = benchmark.judge(texts)
    for text, one in zip(texts, judged, strict=True):
        assert (one.unparsed, one.correct) == (text == "B", text != "B")
    benchmark.verify(texts, tmp_path)
    benchmark.task.process_results = lambda document, results: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Benchmark.judge(benchmark, ["C"] * len(texts))
