"""LongBench's metrics against scores worked out by hand from their definitions."""

from fractions import Fraction
from typing import Any

import pytest

from harness.scoring.longbench import metrics

CLASSES = ["City", "Colour", "Date"]


def one(function: Any, text: str, *answers: str, classes: list[str] | None = None) -> float:
    """The only score that a metric gives for an answer."""
    (value,) = function({"answers": list(answers), "all_classes": classes}, [text]).values()
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        # quick brown fox | brown fox jumps: 2 of 3 and 2 of 3
        ("The quick, brown FOX!", ["a brown fox jumps"], Fraction(2, 3)),
        # 1 of 4 words right, 1 of 1 found: 2 * 1/4 / (5/4)
        ("Paris, France, western Europe", ["paris"], Fraction(2, 5)),
        # red once and blue once in common: 2 of 3 and 2 of 3
        ("red red blue", ["red blue blue"], Fraction(2, 3)),
        # 1 of 2 and 1 of 3 (2/5) for the first; 1 of 2 and 1 of 1 (2/3) for the second
        ("north gate", ["the old stone gate", "gate"], Fraction(2, 3)),
        ("the", ["the"], Fraction(0)),  # nothing is left of an article
        ("no idea", ["gate"], Fraction(0)),
    ],
)
def test_qa_f1(text: str, answers: list[str], score: Fraction) -> None:
    assert one(metrics.qa_f1, text, *answers) == pytest.approx(float(score))


def test_qa_f1_of_the_first_line() -> None:
    assert one(metrics.qa_f1_first_line, "\n\ngate\nPassage: more", "gate") == 1
    # gate Passage more: 1 of 3 and 1 of 1
    assert one(metrics.qa_f1, "\n\ngate\nPassage: more", "gate") == pytest.approx(1 / 2)


def test_qa_f1_zh() -> None:
    # 我 来到 北京 清华大学 | 他 来到 清华大学: 2 of 4 and 2 of 3, the full stop is no word
    assert one(metrics.qa_f1_zh, "我来到北京清华大学。", "他来到清华大学") == pytest.approx(4 / 7)
    assert one(metrics.qa_f1_zh, "。", "他来到清华大学") == 0


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        # a c d in order: 3 of 4 and 3 of 5
        ("a b c d", ["a x c d e"], Fraction(2, 3)),
        # "a b c d" takes "a b" from one sentence and "c d" from the other, "e f" takes "e": 5 of 6
        ("a b x. c d e", ["a b c d. e f"], Fraction(5, 6)),
        # the longest common order of "d a b c" and "a b c d" is "a b c": 3 of 4 and 3 of 4
        ("d a b c", ["a b c d"], Fraction(3, 4)),
        # 1 of 2 and 1 of 4 (1/3) against 1 of 2 and 1 of 2 (1/2)
        ("a z", ["a b c d", "a y"], Fraction(1, 2)),
        ("red red fish", ["red fish"], Fraction(1)),  # the package counts different words
        ("", ["a b"], Fraction(0)),
        (" .", ["a b"], Fraction(0)),
    ],
)
def test_rouge(text: str, answers: list[str], score: Fraction) -> None:
    assert one(metrics.rouge, text, *answers) == pytest.approx(float(score), abs=1e-6)


def test_rouge_of_the_first_line() -> None:
    assert one(metrics.rouge_first_line, "\na b\nc d", "a b") == pytest.approx(1, abs=1e-6)
    # a b c d | a b: 2 of 4 and 2 of 2
    assert one(metrics.rouge, "\na b\nc d", "a b") == pytest.approx(2 / 3, abs=1e-6)


def test_rouge_of_a_long_sentence_does_not_depend_on_the_depth_of_the_caller() -> None:
    # 404 of 1010 and 404 of 404: the recursion of the package is deeper than Python's limit
    answer = " ".join(f"w{i}" for i in range(1010))
    assert one(metrics.rouge, answer, answer[: answer.index(" w404")]) == pytest.approx(4 / 7)


def test_rouge_zh() -> None:
    # 会议 讨论 了 预算 | 会议 批准 了 预算: 3 of 4 and 3 of 4
    score = one(metrics.rouge_zh, "会议讨论了预算", "会议批准了预算")
    assert score == pytest.approx(3 / 4, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "classes", "answer", "score"),
    [
        ("Type: City", CLASSES, "City", Fraction(1)),
        ("City or Date", CLASSES, "City", Fraction(1, 2)),
        ("Date, Colour", CLASSES, "City", Fraction(0)),
        ("city", CLASSES, "City", Fraction(0)),  # letters count as they are
        # a class inside the right one's name does not count against it
        ("Other location", ["location", "Other location"], "Other location", Fraction(1)),
        # as released: "a" goes, and "ab" is passed over since the list shrank meanwhile
        ("abc", ["a", "ab", "abc"], "abc", Fraction(1, 2)),
    ],
)
def test_classification(text: str, classes: list[str], answer: str, score: Fraction) -> None:
    assert one(metrics.classification, text, answer, classes=classes) == float(score)


def test_classification_of_the_first_line() -> None:
    text = "\nCity\nQuestion: x\nType: Date"
    assert one(metrics.classification_first_line, text, "City", classes=CLASSES) == 1
    assert one(metrics.classification, text, "City", classes=CLASSES) == 1 / 2


def test_retrieval() -> None:
    assert one(metrics.retrieval, "Paragraph 3", "Paragraph 3") == 1
    # 3, 12 and 3: two of three
    assert one(metrics.retrieval, "3 or 12, no, 3", "Paragraph 3") == pytest.approx(2 / 3)
    assert one(metrics.retrieval, "Paragraph 33", "Paragraph 3") == 0
    assert one(metrics.retrieval, "the third", "Paragraph 3") == 0
    assert one(metrics.retrieval_zh, "段落12或段落7", "段落12") == 1 / 2
    assert one(metrics.retrieval_zh, "十二", "段落12") == 0


def test_count() -> None:
    assert one(metrics.count, "7", "7") == 1
    assert one(metrics.count, "7 of 30", "7") == 1 / 2
    assert one(metrics.count, "seven", "7") == 0


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        ("return 1", ["return 1"], "1"),
        ("abcd", ["bcde"], "0.75"),  # bcd: 2 * 3 / (4 + 4)
        ("abc", ["abcd"], "0.86"),  # 6 / 7 in whole percents
        ("abc", ["xyz", "abcd"], "0.86"),  # the better reference
        ("\n\nreturn 1\nreturn 2", ["return 1"], "1"),  # newlines before it do not count
        ("# why\n// or\n```python\nreturn 1", ["return 1"], "1"),  # nor comments and fences
        ("  \nreturn 1", ["return 1"], "0.2"),  # a blank line does: 2 * 1 / (2 + 8)
        ("# only a comment", ["return 1"], "0"),
        ("", ["return 1"], "0"),
    ],
)
def test_code_similarity(text: str, answers: list[str], score: str) -> None:
    assert one(metrics.code_similarity, text, *answers) == float(score)


def test_the_verbatim_filter_survives_stripping() -> None:
    (fenced,) = metrics.Verbatim().apply(["  x = 1\n"], [])
    assert fenced.strip() == fenced
    assert metrics.answer([fenced]) == "  x = 1\n"
    assert metrics.answer(["x"]) == "x"
