"""Rows that are only unusual are asked and scored as any other."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from harness.errors import UserError
from harness.scoring.benchmark import Benchmark
from tests.scoring.faulty import (
    Row,
    changed,
    moving,
    picture,
    rows,
    shows,
    task,
    write,
)

Make = Callable[[], list[Row]]

FINE: dict[str, Make] = {
    "wrong options twice": lambda: [
        {**row, **{k: "fig" for k in "ABCD" if k != row["answer"]}} for row in rows()
    ],
    "all secret": changed(slice(0, None), answer=None),
    "a rotation in other words": changed(1, question="Why?"),
    "a rotation with other options": changed(1, A="fig", B="kiwi", C="date", D="lime"),
    "an empty column E": lambda: [{**row, "E": None} for row in rows()],
    "a column E of nan": lambda: [{**row, "E": "nan"} for row in rows()],
    "no hint": changed(slice(0, None), hint="nan"),
    "odd characters": changed(slice(0, None, 3), question="=What\t is\x7f it?\u202e"),
    "a long question": changed(slice(0, None, 3), question="what " * 200_000),
    "1 x 1": shows(picture(size=(1, 1))),
    "CMYK": shows(picture("CMYK", "JPEG")),
    "16 bits": shows(picture("I;16")),
    "palette": shows(picture("P")),
    "grey with alpha": shows(picture("LA")),
    "alpha": shows(picture("RGBA")),
    "one bit": shows(picture("1")),
    "a moving GIF": shows(moving("GIF")),
    "a moving WebP": shows(moving("WEBP")),
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_only_unusual_is_asked_and_scored(name: str, tmp_path: Path) -> None:
    asked = Benchmark("mini", task(write(tmp_path / "data", FINE[name]())))
    assert asked.rows == list(range(12))
    assert asked.left_out == asked.told == []
    right = [row["answer"] for row in FINE[name]()]
    score = asked.verify([letter or "A" for letter in right], tmp_path / "out")
    assert score == (None if name == "all secret" else 100)
    assert asked.image(0).mode == "RGB"


@pytest.mark.parametrize("word", ["nan", "NaN", " None", "null", " \t"])
def test_an_option_that_is_missing_is_neither_shown_nor_read(
    word: str | None, tmp_path: Path
) -> None:
    table = [{**row, "D": word, "hint": word} for row in rows(options=3)]
    asked = Benchmark("mini", task(write(tmp_path / "data", table)))
    clean = Benchmark("mini", task(write(tmp_path / "clean", rows(options=3))))
    texts = [document[row["answer"]] for row, document in zip(table, table, strict=True)]
    assert asked.verify(texts, tmp_path / "out") == 100  # "banana" holds "nan"
    assert [question.letters for question in asked.questions] == [("A", "B", "C")] * 9
    prompts = [b.task.doc_to_text(d) for b in (asked, clean) for d in b.task.eval_docs_no_media]
    assert prompts[:9] == prompts[9:]
    assert asked.fingerprint == clean.fingerprint


def test_none_is_an_option_where_it_moves_or_is_right(tmp_path: Path) -> None:
    named = [
        {k: "None" if text == "pear" else text for k, text in row.items()}
        for row in rows(options=3)
    ]
    asked = Benchmark("mini", task(write(tmp_path / "moves", named)))
    assert "C. None" in asked.task.doc_to_text(asked.task.eval_docs_no_media[0])
    alone = [{**rows(1, 3)[0], "C": "None", "answer": "C"}]
    assert Benchmark("mini", task(write(tmp_path / "right", alone))).questions[0].answer == "C"
    unknown = [{**alone[0], "answer": "A"}]
    with pytest.raises(UserError, match="column C: it cannot be told whether 'None'"):
        Benchmark("mini", task(write(tmp_path / "unknown", unknown)))
    marked = [{**unknown[0], "C": "nan"}]
    assert Benchmark("mini", task(write(tmp_path / "nan", marked))).questions[0].letters == (
        "A",
        "B",
    )


def test_sixteen_bits_a_pixel_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    import io

    import numpy as np

    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)).save(file, "PNG")
    asked = Benchmark("mini", task(write(tmp_path / "data", shows(file.getvalue())())))
    pixels = np.asarray(asked.image(0))[..., 0]
    assert pixels.tolist() == (np.arange(64) * 65535 // 63 // 256).reshape(8, 8).tolist()
