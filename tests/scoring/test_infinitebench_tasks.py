"""InfiniteBench's task files: membership, lengths, prompts as messages, scores on local data."""

import hashlib

import pytest
import yaml

from harness.scoring import datafiles
from harness.scoring.infinitebench.prompts import PROMPTS, doc_to_text, fields
from tests.scoring.infinitebench_data import CASES, MEDIAN, row, write_infinitebench
from tests.scoring.tasks import ROOT, build, members, own_data, score, settings

TOKENS = {
    "passkey": 6,
    "number_string": 12,
    "kv_retrieval": 50,
    "longbook_sum_eng": 1200,
    "longbook_choice_eng": 40,
    "longbook_qa_eng": 40,
    "longbook_qa_chn": 40,
    "longdialogue_qa_eng": 40,
    "math_find": 3,
    "math_calc": 30000,
    "code_run": 5,
    "code_debug": 5,
}
METRICS = {
    "longbook_sum_eng": "rouge_lsum",
    "longbook_qa_eng": "qa_f1",
    "longbook_qa_chn": "character_f1",
    "math_calc": "leading_share",
}
# sha256 of every value in yarn_mistral_templates of the release's src/prompt.py (commit 88b3daa).
RELEASED = {
    "passkey": "32a0f730f8746b1a",
    "number_string": "f519b51c90c40022",
    "kv_retrieval": "afa97419dd69cd74",
    "longbook_sum_eng": "897e95259c5b906a",
    "longbook_choice_eng": "fddf5d8b4293a275",
    "longbook_qa_eng": "6f24f4abaf415845",
    "longbook_qa_chn": "121d4332c1cc5ee0",
    "math_find": "df2334891e94023e",
    "math_calc": "ebf0b348e08e938f",
    "code_run": "8cfbec4288592e77",
    "code_debug": "e485a37d7c9c193f",
    "longdialogue_qa_eng": "0483f9f01c709be7",
}
WHOLE = {  # for the rows of infinitebench_data, with "..." for the context
    "passkey": "There is an important info hidden inside a lot of irrelevant text. Find it and "
    "memorize it. I will quiz you about the important information.\n\n...\n\nWhat is the pass key?"
    "\n\nThe pass key is",
    "longbook_choice_eng": "Read the book and answer the question.\n\n...\n\nQuestion: Where?\nA. "
    "in the barn\nB. at sea\nC. by the mill\nD. nowhere\n\nThe letter of the correct answer is",
    "math_find": "What is the second largest number in the following list?\n\n...\n\nYou should "
    "answer with only one number, no other words. The second largest number of the list is: ",
    "code_run": "There is a function called func_12 in the following Python code.\n\n...\n\nPlease "
    "compute the exact value of func_12(-3). The value of func_12(-3) is",
    "code_debug": "Following is a Python code where exactly one of the functions/methods has a "
    "deliberate error that makes it crash.\n\n...\n\nOptions:\nA. load_page\nB. Cache.drop\nC. "
    "save_page\nD. main\n\nThe correct option is:",
    "longbook_qa_chn": "阅读以下书籍然后回答问题。\n\n...\n\n问题：谁走了\n答案：",  # noqa: RUF001
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """InfiniteBench's files where EVICTBENCH_DATA points for the whole module."""
    with own_data(tmp_path_factory.mktemp("data")) as root:
        yield write_infinitebench(root)


def test_the_groups_hold_12_and_10_tasks() -> None:
    assert set(members("infinitebench")) == {f"infinitebench_{task}" for task in TOKENS}
    assert len(members("infinitebench")) == 12
    without = set(TOKENS) - {"math_calc", "code_run"}
    assert set(members("infinitebench_10")) == {f"infinitebench_{task}" for task in without}
    assert len(members("infinitebench_10")) == 10


@pytest.mark.parametrize("name", TOKENS)
def test_prompt_length_and_metric_of_every_task(name: str) -> None:
    assert hashlib.sha256(PROMPTS[name].encode()).hexdigest()[:16] == RELEASED[name]
    read = settings(f"infinitebench_{name}")
    assert read["generation_kwargs"] == {
        "max_new_tokens": TOKENS[name],
        "until": [],
        "do_sample": False,
    }
    (metric,) = read["metric_list"]
    assert metric["metric"] == METRICS.get(name, "accuracy")
    assert metric["aggregation"] == "mean"
    assert datafiles.repositories(read["dataset_kwargs"]) == ["xinrongzhang2022/InfiniteBench"]
    assert read["dataset_kwargs"]["data_files"]["test"].endswith(f"/InfiniteBench/{name}.jsonl")


@pytest.mark.parametrize("name", TOKENS)
def test_a_right_and_a_wrong_answer_through_lmms_eval(files, name: str) -> None:
    task, case = build(f"infinitebench_{name}"), CASES[name]
    document = next(iter(task.eval_docs_no_media))
    (message,) = task.doc_to_messages(document)
    before, *after = message["content"]
    assert (message["role"], message["truncate"], message["template"]) == ("user", "middle", False)
    context = row(name, 0, case)["context"]
    assert before["context"] is True
    assert before["text"].endswith(context)
    whole = "".join(part["text"] for part in message["content"])
    assert whole == task.doc_to_text(document)
    assert whole.count(context) == 1
    assert whole.replace(context, "...") == WHOLE.get(name, whole.replace(context, "..."))
    assert len(after) == 1
    metric = METRICS.get(name, "accuracy")
    assert score(task, document, case.right) == {metric: pytest.approx(1, abs=1e-6)}
    assert score(task, document, case.wrong) == {metric: 0}
    assert list(task.aggregation()) == [metric]
    assert task.aggregation()[metric]([1.0, 0.5]) == 0.75


def test_whole_and_decimal_references_share_a_file(files) -> None:
    task = build("infinitebench_math_find")
    whole, median = task.eval_docs_no_media
    assert (whole["answer"], median["answer"]) == (["88"], ["48.5"])
    assert score(task, median, MEDIAN.right) == {"accuracy": 1}
    assert score(task, median, MEDIAN.wrong) == {"accuracy": 0}


def test_a_question_in_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="'What is func 1'"):
        fields("code_run", {"context": "", "input": "What is func 1", "options": []})
    with pytest.raises(ValueError, match="'Find it'"):
        doc_to_text({"context": "", "input": "Find it", "options": []}, {"prompt": "math_find"})


@pytest.mark.parametrize("name", ["infinitebench", "infinitebench_10"])
def test_the_run_file_names_the_group(name: str) -> None:
    text = (ROOT / "conf" / "task" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# @package tasks.{name}"
    read = yaml.safe_load(text)
    assert (read["lmms_task"], read["images"]) == (name, False)
    assert members(read["lmms_task"])
