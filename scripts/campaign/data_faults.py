"""What can be wrong, or only odd, with rows of a table of questions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from scripts.campaign import pictures, tables
from scripts.campaign.tables import ROTATION, Row

LONG = "word " * 20_000


@dataclass(frozen=True)
class Fault:
    """A change of the sound table: `want` is refuse, right or either.

    questions: those that `invalid=skip` must leave out. words: what a refusal names. answers: the
    key where it is not what the table says.
    """

    said: str
    change: Callable[[list[Row]], Any]
    want: str = "refuse"
    questions: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    answers: Mapping[int, str] = field(default_factory=dict)

    def table(self) -> list[Row]:
        """The rows with the fault in them."""
        found = tables.rows()
        changed = self.change(found)
        return found if changed is None else changed

    def key(self) -> dict[int, str]:
        """The right letters of the rows that can be asked."""
        sound = tables.key(tables.rows())
        there = {}
        for row in self.table():
            index = row["index"]
            if isinstance(index, int) or (isinstance(index, str) and index.isdigit()):
                there[int(index)] = str(row["answer"] or "").strip()
        return {i: self.answers.get(i, there[i] or sound.get(i, "")) for i in there}


def _set(place: int, **values: Any) -> Callable[[list[Row]], None]:
    """Change fields of the row at a place; places 0 to 3 are the main rows of questions 0 to 3."""

    def change(rows: list[Row]) -> None:
        rows[place] |= {name.replace("L2", "L2-category"): v for name, v in values.items()}

    return change


def _all(**values: Any) -> Callable[[list[Row]], None]:
    def change(rows: list[Row]) -> None:
        for row in rows:
            row |= {name.replace("L2", "L2-category"): v for name, v in values.items()}

    return change


def _image(content: bytes | None, path: str | None = None) -> Callable[[list[Row]], None]:
    return _set(3, image={"bytes": content, "path": path})


def _without(*names: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [{k: v for k, v in row.items() if k not in names} for row in rows]


def _renamed(old: str, new: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [{new if k == old else k: v for k, v in row.items()} for row in rows]


def _answer(value: Any, want: str = "refuse") -> Fault:
    skipped = (2,) if want == "refuse" else ()
    return Fault(f"answer {value!r}", _set(2, answer=value), want, skipped, ("answer",))


def _duplicate(rows: list[Row]) -> None:
    rows.append({**rows[2], "question": "Another one?"})


def _twice(rows: list[Row]) -> None:
    rows.append(dict(rows[2]))


def _orphans(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["index"] not in (1, 3)]


def _fifth(rows: list[Row]) -> None:
    for row in rows:
        row["E"] = "ember" if row["index"] % ROTATION == 3 else None


def _fifth_all(rows: list[Row]) -> None:
    for row in rows:
        row["E"] = "ember"


def _index_text(rows: list[Row]) -> None:
    for row in rows:
        row["index"] = str(row["index"])


def _numbers(rows: list[Row]) -> None:
    for row in rows:
        for place, letter in enumerate("ABCD"):
            row[letter] = None if row[letter] is None else place + row["index"] % 7


def _other_question(rows: list[Row]) -> None:
    next(row for row in rows if row["index"] == 3 + ROTATION)["question"] = "Quite another thing?"


def _swapped_options(rows: list[Row]) -> None:
    rows[0] |= {"A": "B", "B": "A"}


def _nan_options(text: Any) -> Callable[[list[Row]], None]:
    """Missing options in another spelling."""

    def change(rows: list[Row]) -> None:
        for row in rows:
            row |= {x: text for x in "ABCD" if row[x] is None}

    return change


TEXT, FLOAT = pa.string(), pa.float64()
ROWS: tuple[Fault, ...] = (
    *(_answer(value) for value in ("E", "a", "AB", "D", "F", "1", "nan?", "AA", "Yes", "A,B")),
    *(_answer(value) for value in ("", None, "nan", " ", "Z", "A\x00", "birch2", "[A]", "N/A")),
    *(_answer(value, "either") for value in (" A", "A ", "A\n", "\uff21")),
    Fault("all answers in small letters", _all(answer="a"), words=("answer",)),
    Fault("no options", _set(2, A=None, B=None), questions=(2,), words=("option",)),
    Fault("one option", _set(2, B=None, answer="A"), questions=(2,), words=("option",)),
    Fault("only option B", _set(2, A=None, answer="B"), questions=(2,), words=("option",)),
    Fault("a gap in the options", _set(0, B=None, answer="A"), "either"),
    Fault("the right option missing", _set(0, A=None, answer="A"), questions=(0,)),
    Fault("five options in one question", _fifth, questions=(3,), words=("E",)),
    Fault("five options everywhere", _fifth_all, words=("E",)),
    Fault("two options alike", _set(0, A="amber0", B="amber0", answer="A"), "either"),
    Fault("options that name each other", _swapped_options, "either"),
    Fault("options of one letter", _set(0, A="x", B="y", C="z", D="w"), "right"),
    Fault("an option of 100,000 characters", _set(0, B=LONG), "either"),
    Fault("an option with line ends", _set(0, B="one\ntwo\r\nthree"), "either"),
    Fault("an option that says None", _set(0, B="None"), "either"),
    Fault("an option that says None of these", _set(0, B="None of these"), "right"),
    Fault("an option of blanks", _set(0, B="   "), "either"),
    *(Fault(f"missing options as {t!r}", _nan_options(t), "right") for t in ("nan", "")),
    *(Fault(f"missing options as {t!r}", _nan_options(t), "either") for t in ("NaN", "null", " ")),
    Fault("options as numbers", _numbers, "either", types=dict.fromkeys("ABCD", pa.int64())),
    Fault("options as fractions", _numbers, "either", types=dict.fromkeys("ABCD", FLOAT)),
    Fault("an index twice with other text", _duplicate, questions=(2,), words=("index|2",)),
    Fault("a row twice", _twice, questions=(2,), words=("index|2",)),
    Fault("an index that is null", _set(2, index=None), words=("index",), types={"index": FLOAT}),
    Fault("a null whole index", _set(2, index=None), words=("index",)),
    Fault("an index of 1.5", _set(2, index=1.5), words=("index",), types={"index": FLOAT}),
    Fault("indices as fractions", lambda rows: None, "either", types={"index": FLOAT}),
    Fault("indices as text", _index_text, "either", types={"index": TEXT}),
    Fault("32-bit indices", lambda rows: None, "right", types={"index": pa.int32()}),
    Fault("a negative index", _set(2, index=-1), "either"),
    Fault("a huge index", _set(2, index=2**63 - 1), "either"),
    Fault("questions without their main row", _orphans, "either"),
    Fault("a rotation left out", lambda rows: rows[:-1], "right"),
    Fault("rows in reverse", lambda rows: rows[::-1], "right"),
    Fault("a rotation that is another question", _other_question, "either"),
    Fault("a question that is null", _set(2, question=None), questions=(2,), words=("question",)),
    Fault("an empty question", _set(2, question=""), questions=(2,), words=("question",)),
    Fault("a question of blanks", _set(2, question="  "), "either"),
    Fault("a question of 100,000 characters", _set(2, question=LONG), "either"),
    Fault("a question with control characters", _set(2, question="a\x00b\x1b[31m?"), "either"),
    Fault("a question in Chinese", _set(2, question="哪一个是第二个"), "right"),
    Fault("a question that shows <image>", _set(2, question="What is <image> here?"), "either"),
    Fault("a question with braces", _set(2, question="{0} {{x}} %s {question}"), "right"),
    Fault("a category that is null", _set(2, category=None), "either"),
    Fault("an empty category", _set(2, category=""), "either"),
    Fault("an L2 category that is null", _set(2, L2=None), "either"),
    Fault("a category with a pipe and HTML", _set(2, category="<b>|x|</b>\n# y"), "right"),
    Fault("a hint that says nan", _set(2, hint="nan"), "right"),
    Fault("a split that is null", _set(2, split=None), "either"),
    Fault("a source that is null", _set(2, source=None), "either"),
    Fault("no rows", lambda rows: [], words=("no question|no row|0 rows|empty|holds no",)),
    Fault("one row", lambda rows: rows[:1], "right"),
    Fault("one question", lambda rows: [r for r in rows if r["index"] % ROTATION == 0], "right"),
    Fault("columns in another order", lambda rows: [dict(reversed(r.items())) for r in rows],
          "right"),
    Fault("columns that nobody reads", _all(mine="x", note=None), "right"),
    *(
        Fault(f"no column {name}", _without(name), words=(name,))
        for name in ("index", "question", "answer", "A", "B", "category", "image")
    ),
    *(
        Fault(f"no column {name}", _without(name), "either")
        for name in ("C", "D", "hint", "source", "split", "L2-category", "comment")
    ),
    Fault("no columns C and D", _without("C", "D"), "either"),
    Fault("column Question", _renamed("question", "Question"), words=("question",)),
    Fault("column l2-category", _renamed("L2-category", "l2-category"), "either"),
    Fault("answers as numbers", _all(answer=1), words=("answer",), types={"answer": pa.int64()}),
    Fault("answers as lists", _all(answer=["A"]), words=("answer",),
          types={"answer": pa.list_(TEXT)}),
    Fault("questions as lists", _all(question=["a"]), words=("question",),
          types={"question": pa.list_(TEXT)}),
    Fault("large text columns", lambda rows: None, "right",
          types={"question": pa.large_string(), "answer": pa.large_string()}),
    Fault("categories as a dictionary", lambda rows: None, "either",
          types={"category": pa.dictionary(pa.int32(), TEXT)}),
    Fault("images as base64 text", _all(image="iVBORw0KGgo="), words=("image",),
          types={"image": TEXT}),
    Fault("images as bytes", _all(image=tables.picture()), "either", types={"image": pa.binary()}),
    Fault("images as numbers", _all(image=3), words=("image",), types={"image": pa.int64()}),
)  # fmt: skip

IMAGES: tuple[Fault, ...] = (
    *(
        Fault(f"image: {name}", _image(content), "right")
        for name, content in pictures.SOUND.items()
    ),
    *(
        Fault(f"image: {name}", _image(content), questions=(3,), words=("image",))
        for name, content in pictures.BROKEN.items()
    ),
    Fault("image: none", _set(3, image=None), questions=(3,), words=("image",)),
    Fault("image: a path to nothing", _image(None, "/nowhere/x.png"), questions=(3,)),
    Fault("image: a path to a folder", _image(None, "/tmp"), questions=(3,)),
    Fault("image: an address", _image(None, "http://127.0.0.1:9/x.png"), questions=(3,)),
    Fault("images: all none", _all(image=None), words=("image",)),
)

FAULTS = ROWS + IMAGES
