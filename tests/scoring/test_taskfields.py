"""Fields of a task that settings change: of the field's kind, or refused with what it takes."""

import pytest

from harness.errors import UserError
from harness.scoring import taskfields


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("speed", 2, "no task of lmms-eval has a field speed"),
        ("dataset_kwargs", 3, "give a mapping"),
        ("generation_kwargs", 3, "give a mapping"),
        ("lmms_eval_specific_kwargs", "x", "give a mapping"),
        ("test_split", 3, "give a text"),
        ("test_split", True, "give a text"),
        ("repeats", "two", "give a whole number"),
        ("repeats", True, "give a whole number"),
        ("full_docs", 1, "give a switch"),
        ("process_docs", "nope", "it is a function in the task's YAML"),
        ("process_results", "nope", "it is a function in the task's YAML"),
        ("doc_to_visual", 3, "give a text"),
        ("metric_list", [], "names no metric"),
        ("metric_list", None, "names no metric"),
        ("metric_list", [{"name": "acc"}], "names no metric"),
        ("filter_list", 3, "give a text or a list"),
        ("filter_list", ["x"], "give a list of"),
        ("reasoning_tags", "x", "a list of pairs"),
        ("num_fewshot", 3, "prompts with examples are not built here"),
    ],
)
def test_what_a_field_cannot_take_is_refused(field: str, value: object, said: str):
    with pytest.raises(UserError) as caught:
        taskfields.check("mini", {field: value})
    assert f"tasks.mini.overrides.{field}" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset_path", "a/b"),
        ("dataset_kwargs", {"data_files": "x.json"}),
        ("doc_to_text", "{{question}}"),
        ("doc_to_choice", ["a", "b"]),
        ("metric_list", [{"metric": "exact_match"}]),
        ("filter_list", [{"name": "x", "filter": [{"function": "take_first"}]}]),
        ("filter_list", None),
        ("num_fewshot", 0),
        ("full_docs", True),
        ("reasoning_tags", [["<think>", "</think>"]]),
    ],
)
def test_what_a_field_takes_is_taken(field: str, value: object):
    taskfields.check("mini", {field: value})
