"""LongBench's task files: membership, lengths, prompts as messages, and scores on local data."""

import json
import zipfile

import pytest
import yaml

from harness.scoring.longbench.data import bucket
from tests.scoring.longbench_data import CASES, E_TASKS, LENGTHS, row, write_longbench
from tests.scoring.tasks import ROOT, build, members, own_data, score, settings

ENGLISH = [
    *("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "gov_report"),
    *("qmsum", "multi_news", "trec", "triviaqa", "samsum", "passage_count", "passage_retrieval_en"),
]
CHINESE = ["multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"]
CODE = ["lcc", "repobench-p"]
TOKENS = {
    512: "gov_report qmsum multi_news vcsum",
    128: "narrativeqa qasper samsum dureader",
    64: "multifieldqa_en multifieldqa_zh trec lsht lcc repobench-p",
    32: "hotpotqa 2wikimqa musique triviaqa passage_count passage_retrieval_en "
    "passage_retrieval_zh",
}
METRICS = {
    "qa_f1": "narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique triviaqa",
    "qa_f1_zh": "multifieldqa_zh",
    "rouge": "gov_report qmsum multi_news samsum",
    "rouge_zh": "dureader vcsum",
    "classification": "trec lsht",
    "retrieval": "passage_retrieval_en",
    "retrieval_zh": "passage_retrieval_zh",
    "count": "passage_count",
    "code_similarity": "lcc repobench-p",
}
FIRST_LINE = {"trec", "triviaqa", "samsum", "lsht"}
UNWRAPPED = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
ALL = [*ENGLISH, *CHINESE, *CODE]
NAMES = [f"longbench_{task}" for task in ALL] + [f"longbench_{task}_e" for task in E_TASKS]


def spread(table: dict) -> dict[str, object]:
    """A table of space-separated names, turned round."""
    return {name: key for key, names in table.items() for name in names.split()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """LongBench's archive where EVICTBENCH_DATA points for the whole module."""
    with own_data(tmp_path_factory.mktemp("data")) as root:
        yield write_longbench(root)


def test_the_groups_hold_21_16_and_13_tasks() -> None:
    assert len(ALL) == 21
    assert len(members("longbench")) == 21
    assert set(members("longbench")) == {f"longbench_{task}" for task in ALL}
    assert len(members("longbench_16")) == 16
    assert set(members("longbench_16")) == {f"longbench_{task}" for task in [*ENGLISH, *CODE]}
    assert members("longbench_e") == [f"longbench_{task}_e" for task in E_TASKS]
    assert len(E_TASKS) == 13


@pytest.mark.parametrize("name", NAMES)
def test_length_metric_and_stop_of_every_task(name: str) -> None:
    read, task = settings(name), name.removeprefix("longbench_").removesuffix("_e")
    ends = {"until_tokens": ["\n"], "min_new_tokens": 1} if task == "samsum" else {}
    length = spread(TOKENS)[task]
    assert read["generation_kwargs"] == {
        "max_new_tokens": length,
        "until": [],
        "do_sample": False,
        **ends,
    }
    (metric,) = read["metric_list"]
    assert metric["metric"] == spread(METRICS)[task]
    assert metric["aggregation"] == "mean"
    assert read["process_results"].__name__.endswith("_first_line") == (task in FIRST_LINE)
    file = task + ("_e" if name.endswith("_e") else "")
    files = read["dataset_kwargs"]["data_files"]
    assert files == {"test": f"zip://data/{file}.jsonl::hf://datasets/THUDM/LongBench/data.zip"}


@pytest.mark.parametrize("name", NAMES)
def test_a_right_and_a_wrong_answer_through_lmms_eval(archive, name: str) -> None:
    task = build(name)
    short = name.removeprefix("longbench_").removesuffix("_e")
    case, metric = CASES[short], spread(METRICS)[short]
    documents = list(task.eval_docs_no_media)
    assert [d["length"] for d in documents] == list(LENGTHS)
    (message,) = task.doc_to_messages(documents[1])
    before, after = message["content"]
    assert message["role"] == "user"
    assert message["truncate"] == "middle"
    assert message.get("template", True) is (short not in UNWRAPPED)
    assert before["context"] is True
    assert before["text"].endswith(row(short, 0, 1)["context"])
    assert "context" not in after
    assert before["text"] + after["text"] == task.doc_to_text(documents[1])
    assert score(task, documents[1], case.right) == {metric: pytest.approx(1, abs=1e-6)}
    assert score(task, documents[1], case.wrong) == {metric: 0}
    assert list(task.aggregation()) == [metric]
    assert task.aggregation()[metric]([1.0, 0.5]) == 0.75
    assert task.doc_to_target(documents[0]) == case.answers


def test_whitespace_around_an_answer_reaches_the_rules_that_count_it(archive) -> None:
    code = build("longbench_lcc")
    document = next(iter(code.eval_docs_no_media))
    # 20 characters, 4 of them the indentation: without it 2 * 16 / 36 match.
    assert score(code, document, "    return total + 1") == {"code_similarity": 1}
    assert score(code, document, "return total + 1") == {"code_similarity": 0.89}
    trivia = build("longbench_triviaqa")
    document = next(iter(trivia.eval_docs_no_media))
    # A first line of one blank is the answer: only newlines are skipped before it.
    assert score(trivia, document, " \nParis") == {"qa_f1": 0}
    assert score(trivia, document, "\n\nParis\nRome") == {"qa_f1": 1}


def test_the_buckets_of_longbench_e_are_a_column(archive) -> None:
    task = build("longbench_qasper_e")
    assert task.config.metadata["category"] == "length_bucket"
    buckets = [d["length_bucket"] for d in task.eval_docs_no_media]
    assert buckets == ["0-4k", "0-4k", "4-8k", "4-8k", "8k+", "8k+"]
    assert [bucket(n) for n in (0, 3999, 4000, 7999, 8000)] == [
        "0-4k",
        "0-4k",
        "4-8k",
        "4-8k",
        "8k+",
    ]


def test_another_archive_in_the_same_place_is_read_anew(tmp_path) -> None:
    with own_data(tmp_path):
        path = write_longbench(tmp_path)
        assert len(build("longbench_trec").eval_docs_no_media) == len(LENGTHS)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("data/trec.jsonl", json.dumps(row("trec", 5)) + "\n")
        assert len(build("longbench_trec").eval_docs_no_media) == 1


@pytest.mark.parametrize("name", ["longbench", "longbench_16", "longbench_e"])
def test_the_run_file_names_the_group(name: str) -> None:
    text = (ROOT / "conf" / "task" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# @package tasks.{name}"
    read = yaml.safe_load(text)
    assert (read["lmms_task"], read["images"]) == (name, False)
    assert members(read["lmms_task"])
