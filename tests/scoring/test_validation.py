"""Rows that cannot be scored are refused by name, or left out; all others score as they should."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Value

from harness.errors import UserError
from harness.scoring import quiet
from harness.scoring.benchmark import Benchmark
from tests.scoring.faulty import (
    FILE,
    Row,
    changed,
    damaged_tiff,
    grouped,
    half,
    head_of,
    noisy,
    picture,
    rows,
    shows,
    task,
    write,
)

Make = Callable[[], list[Row]]
Spoil = Callable[[list[Row]], object]


def sets(turn: int = 0, **values: object) -> Spoil:
    """Other values in one rotation of a question, or in all of them (-1)."""

    def spoil(turns: list[Row]) -> None:
        for row in turns if turn < 0 else [turns[turn]]:
            row.update(values)

    return spoil


def shown(content: bytes | None, path: str | None = None) -> Spoil:
    return sets(image={"bytes": content, "path": path})


def reworded(turns: list[Row]) -> None:
    for row in turns:
        row.update({letter: "nan" for letter in "ABCD" if row[letter] == "plum"})


# What is done to a question, the rotation that is named, its column, and a word of the reason.
FAULTS: dict[str, tuple[Spoil, int, str, str]] = {
    "answer E": (sets(answer="E"), 0, "answer", "'E'"),
    "answer in lower case": (sets(1, answer="b"), 1, "answer", "'b'"),
    "two answers": (sets(answer="AB"), 0, "answer", "'AB'"),
    "answer with a full stop": (sets(answer="A."), 0, "answer", "'A.'"),
    "answer behind a space": (sets(answer=" A"), 0, "answer", "' A'"),
    "full-width answer": (sets(answer="\uff21"), 0, "answer", "\uff21"),
    "answer by number": (sets(answer="0"), 0, "answer", "'0'"),
    "secret answer": (sets(2, answer=None), 2, "answer", "empty"),
    "empty answer": (sets(2, answer=" "), 2, "answer", "empty"),
    "answer D without D": (sets(D=None, answer="D"), 0, "answer", "'D'"),
    "no option": (sets(A=None, B=None, C="", D=None), 0, "B", "no option"),
    "one option": (sets(A="fig", B="", C=" ", D=None), 0, "B", "1 option"),
    "a gap": (sets(C=None, answer="A"), 0, "C", "option D behind"),
    "no A": (sets(A=None, answer="B"), 0, "A", "option D behind"),
    "the right option twice": (lambda t: t[0].update({"A": t[0][t[0]["answer"]]}), 0, "", "as the"),
    "a fifth option": (sets(E="fig"), 0, "E", "ABCD"),
    "a duplicate index": (lambda t: t[1].update(index=t[0]["index"]), 1, "index", "the same"),
    "no main row": (lambda t: t.pop(0), 0, "index", "no row has the index"),
    "null index": (sets(index=None), 0, "index", "empty"),
    "negative index": (sets(index=-3), 0, "index", "-3"),
    "another right option": (lambda t: t[1].update(answer=t[0]["answer"]), 1, "answer", " is '"),
    "null question": (sets(question=None), 0, "question", "empty"),
    "NUL": (sets(question="Why\x00?"), 0, "question", "it has '\\x00'"),
    "a bell in an option": (sets(1, D="\x07"), 1, "D", "no spreadsheet"),
    "blank question": (sets(question=" \n"), 0, "question", "empty"),
    "the option nan": (reworded, 0, "D", "'nan'"),
    "no image": (sets(image=None), 0, "image", "no image"),
    "empty image": (shown(b""), 0, "image", "empty"),
    "no pixels": (shown(head_of(0, 0)), 0, "image", "image"),
    "SVG": (shown(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 0, "image", "<svg"),
    "text": (shown(b"not an image"), 0, "image", "'not an"),
    "a bomb": (shown(head_of(20_000, 20_000)), 0, "image", "20,000 x 20,000"),
    "a smaller bomb": (shown(head_of(10_000, 10_000)), 0, "image", "10,000 x 10,000"),
    "a path": (shown(None, "plate.png"), 0, "image", "plate.png"),
    "floating-point pixels": (shown(picture("F", "TIFF")), 0, "image", "floating-point"),
    "half a JPEG": (shown(half(noisy())), 0, "image", "cut off"),
    "half a PNG": (shown(half(noisy("PNG"))), 0, "image", "cut off"),
    "a damaged TIFF": (shown(damaged_tiff()), 0, "image", "damaged"),
}
SOUND = 3  # questions without a fault, behind the others


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row], dict[str, int]]:
    """A data set with every fault, its rows, and the row that each fault should name."""
    table, named = [], {}
    for number, group in enumerate(grouped(len(FAULTS) + SOUND)):
        if number < len(FAULTS):
            name = list(FAULTS)[number]
            spoil, turn, *_ = FAULTS[name]
            spoil(group)
            named[name] = len(table) + turn
        table += group
    return write(tmp_path_factory.mktemp("data") / "set", table), table, named


@pytest.fixture(scope="module")
def skipped(
    spoiled: tuple[Path, list[Row], dict[str, int]],
) -> Benchmark:
    return Benchmark("mini", task(spoiled[0], invalid="skip"), label="own")


def test_skipping_leaves_whole_questions_out_and_rows_where_they_were(
    skipped: Benchmark, spoiled: tuple[Path, list[Row], dict[str, int]], tmp_path: Path
) -> None:
    _, table, _ = spoiled
    assert {q.question_id for q in skipped.questions} == {7 + len(FAULTS) + n for n in range(SOUND)}
    assert len(skipped.questions) == 4 * SOUND
    for position, question in zip(skipped.rows, skipped.questions, strict=True):
        assert (table[position]["index"], table[position]["question"]) == (
            question.index,
            question.text,
        )
    assert skipped.verify([q.answer for q in skipped.questions], tmp_path) == 100
    (said,) = skipped.told
    assert said.startswith(f"{len(skipped.left_out)} of ")
    assert "tasks.own.invalid=skip" in said
    assert "manifest.json" in said
    assert len(said) < 600


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_row_is_named_with_its_column_and_the_reason(
    name: str, skipped: Benchmark, spoiled: tuple[Path, list[Row], dict[str, int]]
) -> None:
    _, _, column, word = FAULTS[name]
    found = {fault["row"]: fault for fault in skipped.left_out}
    fault = found[spoiled[2][name]]
    assert column in (fault["column"], "")
    assert word in str(fault["why"])
    assert fault["index"] == spoiled[1][fault["row"]]["index"]


REFUSED: dict[str, tuple[Make, int, str, str]] = {
    "a row": (changed(1, answer="E"), 1, "answer", "'E'"),
    "half an image": (shows(half(noisy())), 0, "image", "cut off"),
    "one open answer": (
        lambda: [{**row, "answer": None if n else row["answer"]} for n, row in enumerate(rows())],
        1,
        "answer",
        "empty",
    ),
    "no main row": (lambda: rows()[1:], 2, "index", "no row has the index 7"),
    "no text": (lambda: [{**row, "question": None} for row in rows()], 0, "question", "empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_row_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    make, row, column, word = REFUSED[name]
    folder = write(tmp_path / "data", make())
    with pytest.raises(UserError) as caught:
        Benchmark("mini", task(folder), label="own")
    said = str(caught.value)
    begin = rf"task=mini cannot be scored: row {row}( \(index \d+\))?, column {column}: "
    assert re.match(begin, said)
    assert word in said
    assert "tasks.own.invalid=skip" in said
    assert "\n" not in said
    assert len(said) < 500


def test_skipping_everything_is_refused(tmp_path: Path) -> None:
    table = [{**row, "E": "fig"} for row in rows()]
    with pytest.raises(UserError, match="no question is left, for 3 of 3"):
        Benchmark("mini", task(write(tmp_path / "data", table), invalid="skip"))


def test_libtiff_says_nothing_by_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "data", shows(damaged_tiff())())
    capfd.readouterr()
    with quiet.into(tmp_path / "log"), pytest.raises(UserError, match="damaged"):
        Benchmark("mini", task(folder))
    assert capfd.readouterr() == ("", "")


def test_a_subsampled_table_is_refused_and_scores_when_skipped(tmp_path: Path) -> None:
    table = [row for number, row in enumerate(rows(9)) if number in {0, 2, 9, 11, 19, 22, 30}]
    folder = write(tmp_path / "data", table)
    with pytest.raises(UserError, match=r"row 3 \(index 1000009\)|no row has the index"):
        Benchmark("mini", task(folder))
    asked = Benchmark("mini", task(folder, invalid="skip"))
    assert {q.question_id for q in asked.questions} == {7, 9}
    assert asked.verify([q.answer for q in asked.questions], tmp_path / "out") == 100


def test_a_limit_looks_at_the_images_that_it_asks_only(tmp_path: Path) -> None:
    clean = write(tmp_path / "clean", rows(9))
    three = {q.question_id for q in Benchmark("mini", task(clean), limit=3).questions}
    (bad, *_) = two = sorted(
        {q.question_id for q in Benchmark("mini", task(clean), limit=2).questions}
    )
    unasked = max({*range(7, 16)} - three)
    table = rows(9)
    for row in table:
        if row["index"] in (bad, unasked):
            row["image"] = {"bytes": half(noisy()), "path": None}
    folder = write(tmp_path / "data", table)
    asked = Benchmark("mini", task(folder, invalid="skip"), limit=2)
    assert {q.question_id for q in asked.questions} == three - {bad}
    assert [fault["index"] for fault in asked.left_out] == [bad]
    assert bad in two
    with pytest.raises(UserError, match=f"index {bad}"):
        Benchmark("mini", task(folder), limit=2)


def test_the_data_skipped_or_not_has_one_fingerprint_a_content(tmp_path: Path) -> None:
    bad, other = changed(answer="E")(), changed(answer="F")()
    prints = [
        Benchmark("mini", task(write(tmp_path / str(n), table), invalid="skip")).fingerprint
        for n, table in enumerate((bad, other, rows()))
    ]
    assert len({*prints}) == 3


def test_text_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    for column in ("question", "C", "hint", "source"):
        folder = write(tmp_path / column, changed(4, **{column: "@@@"})())
        content = (folder / FILE).read_bytes()
        (folder / FILE).write_bytes(content.replace(b"@@@", b"\xff\xfe\xfd"))
        with pytest.raises(UserError, match=r"row 4 .*no UTF-8"):
            Benchmark("mini", task(folder))
        asked = Benchmark("mini", task(folder, invalid="skip"))
        assert len({q.question_id for q in asked.questions}) == 2


COLUMNS = {
    "index as text": ({"index": Value("string")}, "index", "string"),
    "index with decimals": ({"index": Value("float64")}, "index", "float64"),
    "answers as numbers": ({"answer": Value("int64")}, "answer", "int64"),
    "options as numbers": ({"A": Value("int64")}, "A", "int64"),
    "questions as numbers": ({"question": Value("float32")}, "question", "float32"),
    "images as text": ({"image": Value("string")}, "image", "string"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_another_type_is_refused(name: str, tmp_path: Path) -> None:
    kinds, column, kind = COLUMNS[name]
    given = "1" if kind == "string" else 1
    table = [{**row, column: given} for row in rows()]
    with pytest.raises(UserError, match=f"column {column} of its data holds {kind}; store"):
        Benchmark("mini", task(write(tmp_path / "data", table, kinds), invalid="skip"))


@pytest.mark.parametrize(
    "column",
    ["index", "question", "answer", "B", "D", "image", "category", "hint", "source", "L2-category"],
)
def test_a_missing_column_is_named(column: str, tmp_path: Path) -> None:
    table = rows()
    for row in table:
        del row[column]
    with pytest.raises(UserError, match=f"has no column {column}; add"):
        Benchmark("mini", task(write(tmp_path / "data", table), invalid="skip"))
