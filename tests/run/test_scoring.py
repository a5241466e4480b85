import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from harness.errors import UserError
from harness.scoring.benchmark import Benchmark, choose
from harness.scoring.judgement import Judgement, Question
from harness.scoring.mmbench import MMBench, mmbench_evaluator
from harness.scoring.scorers import Scores
from harness.settings.config import TaskConfig
from tests.run.fakes import write_mmbench

# Answers as models write them: letters, forms, option texts, refusals, and traps for an extraction.
TEXTS = (
    "A", "B", "C", "D", "E", "b", " C\n", "A.", "(B)", "D:", "C) blue", "red", "It is Green",
    "red or blue", "The answer is B", "Absolutely not", "I choose (A).", "A shape of some kind",
    "", "nan", "None", "Answer: D because A is wrong", "Failed to obtain answer via API",
)  # fmt: skip


def task(data: Path, **changes: object) -> TaskConfig:
    overrides = {"dataset_path": str(data), "dataset_kwargs": {}}
    config = TaskConfig("mmbench_en_dev_static", scorer="mmbench", overrides=overrides)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


@pytest.fixture(scope="module")
def benchmark(data: Path) -> Benchmark:
    return Benchmark("mini", task(data))


@pytest.mark.parametrize("seed", range(6))
def test_hits_add_up_to_what_lmms_eval_reports(
    benchmark: Benchmark, seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    right = [q.answer for q in benchmark.questions]
    share = seed / 5  # from all odd texts to all right
    texts = [a if rng.random() < share else rng.choice(TEXTS) for a in right]
    judged = benchmark.judge(texts)
    frame = pd.DataFrame(
        {"q": [q.question_id for q in benchmark.questions], "hit": [j.correct for j in judged]}
    )
    circular = 100 * frame.groupby("q")["hit"].all().mean()
    assert benchmark.aggregate(texts, tmp_path) == pytest.approx(circular)
    assert benchmark.verify(texts, tmp_path) == pytest.approx(circular)
    assert [p.name for p in tmp_path.iterdir()] == ["submissions"]


@pytest.mark.parametrize("text", TEXTS)
def test_each_row_is_judged_as_lmms_eval_judges_it_alone(benchmark: Benchmark, text: str) -> None:
    judged = benchmark.judge([text] * len(benchmark.rows))
    for question, judgement, document in zip(
        benchmark.questions, judged, benchmark.task.eval_docs_no_media, strict=True
    ):
        item = {**document, "prediction": text.strip()}
        alone = mmbench_evaluator.eval_sub_data(
            pd.DataFrame([item]), {question.index: question.answer}, static_only=True
        )
        assert judgement.correct == bool(alone)
        assert judgement.unparsed == (judgement.parsed is None)


def test_a_disagreement_with_lmms_eval_stops_the_run(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark.scorer, "total", lambda questions, judged: 12.5)
    with pytest.raises(RuntimeError, match="lmms-eval scores"):
        benchmark.verify(["A"] * len(benchmark.rows), tmp_path)


def test_questions_carry_letters_rotations_and_abilities(benchmark: Benchmark) -> None:
    assert len(benchmark.rows) == 3 * (2 + 3 + 4)
    for question in benchmark.questions:
        assert question.question_id == question.index % 1_000_000
        assert question.letters == tuple("ABCD"[: 2 + question.question_id % 3])
        assert question.category == f"kind_{question.question_id % 3}"


def test_a_limit_takes_whole_questions_and_larger_ones_contain_smaller_ones(
    benchmark: Benchmark,
) -> None:
    every = benchmark.questions
    before: set[int] = set()
    for limit in range(1, 10):
        rows = choose(every, limit)
        ids = {every[row].question_id for row in rows}
        assert len(ids) == limit
        assert before < ids
        assert rows == [i for i, q in enumerate(every) if q.question_id in ids]
        before = ids
    assert choose(every, None) == choose(every, 99) == list(range(len(every)))


def test_a_limited_benchmark_scores_its_own_rows(
    benchmark: Benchmark, data: Path, tmp_path: Path
) -> None:
    small = Benchmark("mini", task(data), limit=4)
    assert small.fingerprint == benchmark.fingerprint
    assert small.questions == [benchmark.questions[row] for row in small.rows]
    assert len(small.task.eval_docs) == len(small.rows)
    assert small.verify([q.answer for q in small.questions], tmp_path) == 100
    row = small.rows[-1]
    assert small.image(row).size == (8 + benchmark.questions[row].question_id, 8)


def test_the_fingerprint_follows_questions_images_and_prompts(data: Path, tmp_path: Path) -> None:
    same = Benchmark("mini", task(write_mmbench(tmp_path / "same")))
    more = Benchmark("mini", task(write_mmbench(tmp_path / "more", 10)))
    asked = {"default": {"pre_prompt": "", "post_prompt": "\nOne letter."}}
    config = task(data)
    config.overrides["lmms_eval_specific_kwargs"] = asked
    reworded = Benchmark("mini", config)
    prints = [b.fingerprint for b in (Benchmark("mini", task(data)), same, more, reworded)]
    assert prints[0] == prints[1]
    assert len(set(prints[1:])) == 3


def test_data_that_changed_in_place_is_read_anew(tmp_path: Path) -> None:
    folder = write_mmbench(tmp_path / "mmbench", 3)
    before = Benchmark("mini", task(folder))
    (folder / "en" / "dev-00000-of-00001.parquet").unlink()
    (folder / "en").rmdir()
    write_mmbench(folder, 5)
    after = Benchmark("mini", task(folder))
    assert len({q.question_id for q in before.questions}) == 3
    assert len({q.question_id for q in after.questions}) == 5
    assert before.fingerprint != after.fingerprint


def test_generation_arguments_of_the_task_can_be_changed(data: Path) -> None:
    changed = Benchmark("mini", task(data, generation={"max_new_tokens": 3}))
    assert changed.generation["max_new_tokens"] == 3
    assert changed.generation["until"] == ["ASSISTANT:"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lmms_task": "mmbench_foo"}, "mmbench_foo is not a task"),
        ({"overrides": {"dataset_path": "/nowhere"}}, "/nowhere is not here"),
    ],
)
def test_a_task_that_is_not_there_is_refused(data: Path, changes: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Benchmark("mini", task(data, **changes))


class _Task:
    """A task that only tells its metrics."""

    task_name = "toy"
    config = SimpleNamespace(metadata=None, process_results=None)
    eval_docs_no_media = Dataset.from_list([{"answer": "a"}])

    def aggregation(self) -> dict[str, object]:
        return {"exact_match": np.mean, "other": np.mean}

    def higher_is_better(self) -> dict[str, bool]:
        return {"exact_match": True, "other": True}

    def doc_to_target(self, document: dict[str, str]) -> str:
        return document["answer"]

    def process_results(self, document: dict[str, str], results: list[str]) -> dict[str, float]:
        return {"exact_match": float(results[0] == document["answer"]), "other": 0.5}


def test_tasks_with_a_score_a_sample_need_no_scorer_of_their_own() -> None:
    scorer = Scores(_Task())
    assert scorer.judge({}, {"exact_match": 1, "other": 0.5}).correct
    assert scorer.judge({}, {"exact_match": 0.4}) == Judgement(None, 0.4)
    assert not scorer.judge({}, {"exact_match": 0.4}).correct
    with pytest.raises(UserError, match="no score between 0 and 1"):
        scorer.judge({"answer": "a"}, {"exact_match": 40})


def test_circular_accuracy_needs_every_rotation() -> None:
    asked = [Question(i, i % 1_000_000, "c", "l", "q", "A") for i in (0, 1, 1_000_000, 1_000_001)]
    judged = [Judgement("A", hit) for hit in (True, True, True, False)]
    assert MMBench().total(asked, judged) == 50
