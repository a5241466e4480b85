"""InfiniteBench's metrics against scores worked out by hand from their definitions."""

from typing import Any

import pytest

from harness.scoring.infinitebench import metrics

OPTIONS = ["in the barn", "at sea", "by the mill", "nowhere"]
FUNCTIONS = ["load_page", "Cache.drop", "save_page", "main"]


def one(function: Any, text: str, answer: Any, options: list[str] | None = None) -> float:
    """The only score that a metric gives for an answer."""
    (value,) = function({"answer": answer, "options": options or []}, [text]).values()
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("71432", 1),
        ("The pass key is 71432.", 1),
        ("-71432", 1),  # digits alone count
        ("key 1: 71432", 0),  # only the first number
        ("714320", 0),
        ("071432", 0),  # compared as text
        ("seven", 0),
    ],
)
def test_first_number(text: str, score: int) -> None:
    assert one(metrics.first_number, text, ["71432"]) == score
    assert one(metrics.first_number, text, "71432") == score  # an older file's bare reference


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('The value is "ab-12".', 1),
        ("{ab-12}", 1),
        ("ab-12,ab-13", 1),
        ("ab-123", 0),
        ("ab", 0),
        ("(ab-12)", 0),  # round brackets do not part words
    ],
)
def test_value(text: str, score: int) -> None:
    assert one(metrics.value, text, ["ab-12"]) == score


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("Mira.", ["MIRA"], 1),
        ("to be 'mira': yes", ["MIRA"], 1),
        ("Miranda", ["MIRA"], 0),
        ("Tom", ["MIRA", "TOM"], 0),  # only the first reference counts
        ("Mira", ["Mira"], 0),  # and as it is written
        ("Mira Stone", ["MIRA STONE"], 0),  # a name of two words is no word
    ],
)
def test_speaker(text: str, answer: list[str], score: int) -> None:
    assert one(metrics.speaker, text, answer) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("-5", 1),
        ("The return value is: `-5`.", 1),
        ("first 4, then -5", 1),
        ("-5 or 4", 0),
        ("5", 0),
        ("five", 0),
        ("", 0),
    ],
)
def test_last_number(text: str, score: int) -> None:
    assert one(metrics.last_number, text, ["-5"]) == score


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("88", ["88"], 1),
        ("It is 88, not 87", ["88"], 1),
        ("87 or 88", ["88"], 0),
        ("88.5", ["88"], 0),
        ("48.5", ["48.5"], 1),
        ("48", ["48.5"], 0),
        ("48", ["48.0"], 1),
        ("none", ["88"], 0),
    ],
)
def test_number(text: str, answer: list[str], score: int) -> None:
    assert one(metrics.number, text, answer) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("[4, 8, 5, 7]", 1),
        ("4 8 5 9", 3 / 4),
        ("4, 9, 5, 7", 1 / 4),  # what comes after a wrong one does not count
        ("4 8", 2 / 4),
        ("4 8 5 7 11", 1),
        ("8 5 7", 0),
        ("", 0),
    ],
)
def test_leading_share(text: str, score: float) -> None:
    assert one(metrics.leading_share, text, [4, 8, 5, 7]) == score
    assert one(metrics.leading_share, text, [[4, 8, 5, 7]]) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (" B. Cache.drop", 1),
        ("B: yes", 1),
        ("B", 0),  # as released: the letter alone is not read
        ("C. save_page", 0),
        ("The correct option is: B", 1),
        ("The answer is: Cache.drop", 1),
        ("The answer is:\n\n**B**", 1),  # marks become one space, which is skipped
        ("The answer is: C, not B", 0),
        ("The answer is:", 0),
        ("answer: Option B", 1),  # the word goes, and its spaces become one
        ("answer:B", 0),  # as released: the character after the colon is skipped
        ("I think it is B", 0),
    ],
)
def test_debug_choice(text: str, score: int) -> None:
    assert one(metrics.debug_choice, text, ["Cache.drop"], FUNCTIONS) == score
    assert one(metrics.debug_choice, text, ["Cache.drop", "B"], FUNCTIONS) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (" B. at sea", 1),
        ("Bob", 1),  # as released: the first letter alone is read
        ("A or B", 0),
        ("at sea", 1),
        ("The answer is: B", 1),
        ("The answer is at sea.", 1),
        ("The best option is C, not B", 0),
        ("The answer is", 0),
        ("I would say B, then A", 1),
        ("I would say A, then B", 0),
        ("no idea", 0),
        ("", 0),
    ],
)
def test_book_choice(text: str, score: int) -> None:
    assert one(metrics.book_choice, text, ["at sea"], OPTIONS) == score
    assert one(metrics.book_choice, text, ["at sea", "B"], OPTIONS) == score


def test_qa_f1() -> None:
    # Mira the quick girl without its article: 2 of 3 and 2 of 2 for the second reference
    text = "Mira, the quick girl"
    assert one(metrics.qa_f1, text, ["Mira", "quick girl"]) == pytest.approx(4 / 5)
    assert one(metrics.qa_f1, "Tom", ["Mira"]) == 0


def test_character_f1() -> None:
    # 小 明 走 | 小 明 和 小 红: 小 and 明, 2 of 3 and 2 of 5
    assert one(metrics.character_f1, "小明走。", ["小明和小红"]) == pytest.approx(1 / 2)
    # 2 of 3 and 2 of 2 for the better reference
    assert one(metrics.character_f1, "小明 走", ["红", "小明"]) == pytest.approx(4 / 5)
    assert one(metrics.character_f1, "。", ["小明"]) == 0


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        # a c d in order: 3 of 4 and 3 of 5
        ("a b c d", ["a x c d e"], 2 / 3),
        # lines are sentences: every reference line finds its whole self, whatever their order
        ("c d\na b", ["a b\nc d"], 1),
        ("c d a b", ["a b c d"], 1 / 2),  # in one line only two in order: 2 of 4 and 2 of 4
        ("a z", ["a b c d", "a y"], 1 / 2),  # the better reference: 1 of 2 and 1 of 2
        ("runs", ["running"], 0),  # no stemming
        ("", ["a"], 0),
    ],
)
def test_rouge_lsum(text: str, answer: list[str], score: float) -> None:
    assert one(metrics.rouge_lsum, text, answer) == pytest.approx(score)
