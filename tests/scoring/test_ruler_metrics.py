"""RULER's metrics and messages against cases worked out by hand."""

import pytest
from lm_eval.tasks.ruler import common_utils

from harness.scoring.ruler import metrics, prompts

ALL = [
    (["1234567"], "The number is 1234567.", 1.0),
    (["1234567"], "The number is 1234568.", 0.0),
    (["AB", "cd", "Ef", "gh"], "ab, CD and nothing else", 0.5),
    (["a", "b", "c"], "b", 1 / 3),
    (["two\nlines"], "two\x00lines", 1.0),  # control characters are newlines
    (["two\nlines"], "two\tlines", 1.0),
    (["two lines"], "two\nlines", 0.0),
    (["x"], "  \x01 x \x02 ", 1.0),
    (["x"], "", 0.0),
    (["cat"], "concatenate", 1.0),  # contained is enough
]
PART = [
    (["the Normans", "Normans"], "normans", 1.0),
    (["a1", "b2", "c3", "d4"], "only B2 here", 1.0),  # lm-eval's average would give 0.25
    (["a1", "b2"], "none", 0.0),
    (["a\nb"], "a\x1fb", 1.0),
]


@pytest.mark.parametrize(("outputs", "answer", "expected"), ALL)
def test_all(outputs: list[str], answer: str, expected: float) -> None:
    found = metrics.process_results_all({"outputs": outputs}, [answer])
    assert found == {"string_match": pytest.approx(expected)}


@pytest.mark.parametrize(("outputs", "answer", "expected"), PART)
def test_part(outputs: list[str], answer: str, expected: float) -> None:
    assert metrics.process_results_part({"outputs": outputs}, [answer]) == {
        "string_match": expected
    }


@pytest.mark.parametrize(("outputs", "answer", "expected"), ALL)
def test_all_as_lm_eval(outputs: list[str], answer: str, expected: float) -> None:
    """string_match_all and the cleaning of answers agree with lm-eval's."""
    cleaned = common_utils.postprocess_pred([answer])
    assert common_utils.string_match_all(cleaned, [outputs]) == pytest.approx(expected)


def test_messages_cut_at_the_context() -> None:
    row = {"input": "long text\nWhat?", "context_end": 9, "answer_prefix": " It is"}
    user, assistant = prompts.doc_to_messages(row)
    assert user == {
        "role": "user",
        "content": [
            {"type": "text", "text": "long text", "context": True},
            {"type": "text", "text": "\nWhat?"},
        ],
    }
    assert assistant == {"role": "assistant", "content": " It is"}
    assert prompts.doc_to_text(row) == "long text\nWhat? It is"
    assert len(prompts.doc_to_messages({**row, "answer_prefix": ""})) == 1
