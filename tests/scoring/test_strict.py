import random

import pandas as pd
import pytest

from harness.errors import UserError
from harness.scoring import strict
from harness.scoring.mmbench import MMBench

# Answer, options A to D, the letter that lmms-eval's static reading finds, the strict letter.
# Both derived by hand from the two rules; None is unresolved.
CATS = ("cat", "dog", "red bird", "blue fish")
YES = ("yes", "no")
CN = ("红色", "绿色", "深蓝色", "黄色")
TABLE = [
    ("A", CATS, "A", "A"),
    ("A.", CATS, "A", "A"),
    ("(A)", CATS, "A", "A"),
    ("A:", CATS, "A", "A"),
    ("**B**", CATS, "B", "B"),  # lmms-eval: any B at all; strict: stars are marks
    ("B\n", CATS, "B", "B"),
    ("[C]", CATS, "C", "C"),
    ("{C}", CATS, "C", "C"),
    ("d", CATS, None, None),  # small letters name no option
    ("B-", CATS, "B", None),  # lmms-eval: it starts with B and a non-letter
    ("The answer is A", CATS, "A", "A"),
    ("The answer is B, and not A.", CATS, "A", "B"),  # lmms-eval: "X." before "X,"; "answer is B"
    ("A or B", CATS, "A", None),  # lmms-eval: starts with A
    ("Either B or C is right", CATS, "C", None),  # lmms-eval: the last "C "
    ("A cat", CATS, "A", "A"),
    ("A dog", CATS, "A", "A"),  # both take the article for the letter
    ("It is a dog", CATS, "B", "B"),  # the text of an option
    ("It is a DOG!", CATS, "B", "B"),
    ("The cat chases the dog", CATS, None, None),  # two texts, no capital letter of an option
    ("a red bird", CATS, "C", "C"),
    ("A picture of the ocean at night", CATS, "A", None),  # an article far from the end
    ("B is what I see on the left", CATS, "B", None),  # one letter, far from the end
    ("B is on the left", CATS, "B", None),  # fifth from the end
    ("B is the left", CATS, "B", "B"),  # fourth from the end
    ("The correct answer is **B**. Here is why: it has fur and whiskers.", CATS, "B", "B"),
    ("The answer is blue", CATS, None, "B"),  # the strict rule does not look behind the letter
    ("Absolutely not", CATS, "A", None),
    ("Cannot determine the answer", CATS, "C", None),  # a refusal that VLMEvalKit knows
    ("I'm sorry, but without the image provided B", CATS, "B", None),
    ("Z", CATS, None, None),
    ("Z, not A", CATS, "A", "A"),
    ("", CATS, None, None),
    ("   ", CATS, None, None),
    ("?", CATS, None, None),
    ("C", YES, "C", None),  # lmms-eval looks for five letters whatever there is
    ("E", CATS, "E", None),
    ("yes", YES, "A", "A"),
    ("yes, because the picture shows it", YES, "A", None),  # longer than twice all options
    ("I know", YES, "B", "B"),  # "no" is in "know"
    ("I do not know", YES, "B", None),  # the same, and longer than twice all options
    ("答案是B", CN, "B", "B"),  # one word for VLMEvalKit
    ("答案是 B", CN, "B", "B"),
    ("B。", CN, "B", "B"),
    ("B. 绿色", CN, "B", "B"),
    ("绿色", CN, "B", "B"),
    ("红色和绿色", CN, None, None),
    ("选C", CN, "C", "C"),
    ("不选C", CN, "C", None),
    ("Failed to obtain answer via API", CATS, "A", None),
]


def item(answer: str, options: tuple[str, ...], missing: object = None) -> dict[str, object]:
    texts = dict(zip("ABCD", [*options, *[missing] * 4][:4], strict=True))
    return {"index": 1, "answer": "B", "category": "c", "prediction": answer, **texts}


@pytest.mark.parametrize(("answer", "options", "permissive", "exact"), TABLE)
def test_both_readings_of_answers_derived_by_hand(
    answer: str, options: tuple[str, ...], permissive: str | None, exact: str | None
) -> None:
    row = item(answer.strip(), options)
    theirs, ours = MMBench().both(row, {"gpt_eval_score": row})
    assert (theirs.parsed, ours.parsed) == (permissive, exact)
    for judged in (theirs, ours):
        assert judged.unparsed == (judged.parsed is None)
        assert judged.correct == (judged.parsed == "B")


def test_the_word_nan_where_an_option_is_absent_is_no_option_of_the_strict_reading() -> None:
    row = item("a banana", ("apple", "pear"), "nan")
    theirs, ours = MMBench().both(row, {"gpt_eval_score": row})
    assert theirs.parsed is None  # "nan" is found twice, as C and as D
    assert ours.parsed is None
    row = item("a banana", ("apple", "pear", "plum"), "nan")
    theirs, ours = MMBench().both(row, {"gpt_eval_score": row})
    assert theirs.parsed == "D"  # lmms-eval's own trap: the text of option D is "nan"
    assert ours.parsed is None
    assert strict.options(row) == {"A": "apple", "B": "pear", "C": "plum"}
    assert strict.options({"A": "x", "B": None, "C": float("nan"), "D": ""}) == {"A": "x"}


def test_each_extraction_judges_by_its_own_reading() -> None:
    row = item("B is what I see on the left", CATS)
    metrics = {"gpt_eval_score": row}
    assert MMBench("lmms_eval").judge(row, metrics).correct
    judged = MMBench("strict").judge(row, metrics)
    assert (judged.parsed, judged.correct, judged.unparsed) == (None, False, True)
    with pytest.raises(
        UserError, match="extraction=gpt is not known: use one of lmms_eval, strict"
    ):
        MMBench("gpt")


@pytest.mark.parametrize("seed", range(3))
def test_what_holds_for_any_answer(seed: int) -> None:
    rng = random.Random(seed)
    parts = [*"ABCDEZab ", *CATS, *CN, "answer is", "the", " ", ".", ",", "(", ")", "nan", "\n"]
    resolved = 0
    for _ in range(3_000):
        options = tuple(rng.sample([*CATS, *CN], rng.randint(2, 4)))
        answer = "".join(
            rng.choice([" ", ""]) + rng.choice(parts) for _ in range(rng.randint(0, 8))
        )
        row = item(answer, options)
        choices = strict.options(row)
        found = strict.letter(answer, choices)
        resolved += found is not None
        assert found is None or found in choices
        assert strict.letter(answer.replace("(", "[").replace(",", "!"), choices) == found
        if not any(name.lower() in answer.lower() for name in "ABCD"):  # only a text can decide
            held = [k for k, text in choices.items() if text.lower() in answer.lower()]
            assert found in (None, *held[: len(held) == 1])
        theirs, ours = MMBench().both(row, {"gpt_eval_score": row})
        assert ours.parsed == found
        assert ours.correct == (found == "B")
        assert theirs.correct == (theirs.parsed == "B")
    assert 300 < resolved < 2_900


@pytest.mark.parametrize("letter", "ABCD")
@pytest.mark.parametrize(
    "form", ["{}", "{}.", "({})", "{}:", " {}\n", "{})", "The answer is {}", "{}, I think"]
)
def test_plain_answers_are_read_alike(letter: str, form: str) -> None:
    row = item(form.format(letter).strip(), CATS)
    theirs, ours = MMBench().both(row, {"gpt_eval_score": row})
    assert theirs.parsed == ours.parsed == letter


def test_circular_accuracy_of_the_strict_reading_counts_an_unresolved_turn_as_wrong() -> None:
    scorer = MMBench("strict")
    rows = [{**item(text, CATS), "index": index} for index, text in (
        (1, "B"), (1_000_001, "(B)"), (2, "B"), (1_000_002, "B-"), (3, "A"), (1_000_003, "B"),
    )]  # fmt: skip
    rows = [{**row, "question": "q", "L2-category": "l"} for row in rows]
    questions = [scorer.question(None, row, i) for i, row in enumerate(rows)]
    judged = [scorer.judge(row, {"gpt_eval_score": row}) for row in rows]
    frame = pd.DataFrame(
        {"q": [q.question_id for q in questions], "hit": [j.correct for j in judged]}
    )
    assert frame.groupby("q")["hit"].all().tolist() == [True, False, False]
    assert sum(j.unparsed for j in judged) == 1
    assert scorer.total(questions, judged) is None  # lmms-eval's aggregate reads permissively
    theirs = MMBench()
    judged = [theirs.judge(row, {"gpt_eval_score": row}) for row in rows]
    assert theirs.total(questions, judged) == pytest.approx(200 / 3)
