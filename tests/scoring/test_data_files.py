"""Data sets whose files are not as they should be: one sentence that names the file."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.errors import UserError
from harness.scoring import quiet
from harness.scoring.benchmark import Benchmark
from harness.settings.config import TaskConfig
from tests.scoring.faulty import FILE, half, rows, task, write
from tests.scoring.tasks import own_data


def cut(folder: Path) -> None:
    (folder / FILE).write_bytes(half((folder / FILE).read_bytes()))


def damaged(folder: Path) -> None:
    """The pages of the file overwritten, its end as it was."""
    content = bytearray((folder / FILE).read_bytes())
    content[4 : len(content) // 2] = b"x" * (len(content) // 2 - 4)
    (folder / FILE).write_bytes(bytes(content))


def emptied(folder: Path) -> None:
    (folder / FILE).write_bytes(b"")


def as_text(folder: Path) -> None:
    (folder / FILE).write_text("index,question\n1,what\n")


def without_rows(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / FILE).slice(0, 0), folder / FILE)


def mixed(folder: Path) -> None:
    table = pq.read_table(folder / FILE)
    place = table.schema.get_field_index("question")
    pictures = table.column("image")
    other = table.set_column(place, "question", pictures)
    pq.write_table(other, (folder / FILE).with_name("dev-00001-of-00001.parquet"))


def head(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "README.md").write_text(text)


def no_card(folder: Path) -> None:
    (folder / "README.md").unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (cut, r"dev-00000-of-00001.parquet is no whole parquet file \("),
    "damaged": (damaged, r"dev-00000-of-00001.parquet is no whole parquet file \("),
    "empty": (emptied, r"dev-00000-of-00001.parquet is an empty file"),
    "text": (as_text, r"dev-00000-of-00001.parquet is no whole parquet file \("),
    "no rows": (without_rows, "dev-00000-of-00001.parquet has no row"),
    "two schemas": (mixed, "column question is string in .* and struct"),
    "no README": (no_card, r"has no configuration en \(it has default\); list it in .*README.md"),
    "broken README": (head("---\nconfigs: [a: b: c\n---\n"), "the head of .*README.md is no YAML"),
    "endless README": (head("---\nconfigs:\n"), "its head does not end with ---"),
    "README of another": (
        head("---\nconfigs:\n- config_name: cn\n  data_files: en/dev-*\n---\n"),
        r"has no configuration en \(it has cn\)",
    ),
    "README with another split": (
        head(
            "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: test\n    path: en/*\n---"
        ),
        r"has no split dev \(it has test\)",
    ),
    "README with no file": (
        head(
            "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: dev\n    path: no/*\n---"
        ),
        "its data cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    spoil, told = BROKEN[name]
    folder = write(tmp_path / "data", rows())
    spoil(folder)
    with pytest.raises(UserError, match=told) as caught:
        Benchmark("mini", task(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_libraries_log_into_the_file_only(tmp_path: Path, capfd, monkeypatch) -> None:
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith("datasets") and isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "disabled", False)  # Hydra may have run in this process
    folder = write(tmp_path / "data", rows())
    (folder / "en" / "dev-junk.txt").write_text("hi")
    stream = sys.stderr
    handler = logging.StreamHandler(stream)
    logging.getLogger("datasets").addHandler(handler)
    capfd.readouterr()
    try:
        with quiet.into(tmp_path / "log"), pytest.raises(UserError, match="cannot be loaded"):
            Benchmark("mini", task(folder))
        assert handler.stream is stream
    finally:
        logging.getLogger("datasets").removeHandler(handler)
    assert capfd.readouterr() == ("", "")
    assert "Failed to read file" in (tmp_path / "log").read_text()


def test_images_as_other_writers_store_them_are_shown(tmp_path: Path) -> None:
    table = rows()
    plain = pa.Table.from_pylist([{k: v for k, v in row.items() if k != "image"} for row in table])
    stored = {
        "fields": pa.array([row["image"] for row in table]),
        "bytes": pa.array([row["image"]["bytes"] for row in table]),
    }
    prints = set()
    for name, images in stored.items():
        folder = write(tmp_path / name, table)
        pq.write_table(plain.append_column("image", images), folder / FILE)
        asked = Benchmark("mini", task(folder))
        prints.add(asked.fingerprint)
        assert asked.image(0).size == (8, 8)
        assert asked.shows_images
        assert asked.verify([row["answer"] for row in table], tmp_path / "out") == 100
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("nowhere/at-all/here", "names no data"),
        ("/nowhere", "/nowhere is not here"),
        ("/\0", "cannot be read"),
        ("FILE", "is a file: name the folder"),
        ("EMPTY", "has no parquet file"),
        ("", "names no data"),
        ("nul\0", "names no data"),
    ],
)
def test_a_path_that_holds_no_data_is_refused(path: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    places = {"FILE": str(tmp_path / "file"), "EMPTY": str(tmp_path / "empty")}
    with pytest.raises(UserError, match=told):
        Benchmark("mini", task(tmp_path, overrides={"dataset_path": places.get(path, path)}))


@pytest.mark.parametrize(("field", "told"), [("dataset_name", "xx"), ("test_split", "xx")])
def test_a_configuration_or_split_that_is_not_there_is_refused(
    field: str, told: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "data", rows())
    with pytest.raises(UserError, match=f"has no (configuration|split) {told} "):
        Benchmark("mini", task(folder, overrides={field: "xx"}))


LINE = {
    "input": "what is it",
    "context": "it is a city",
    "answers": ["City"],
    "length": 3,
    "dataset": "trec",
    "language": "en",
    "all_classes": ["City", "Date"],
    "_id": "0",
}


def lines(*others: Any) -> str:
    """Three good lines and others behind them, as JSON where they are no text."""
    every = [LINE, LINE, LINE, *others]
    return "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in every)


def line(**changes: Any) -> str:
    return lines({**LINE, **changes})


def lacks(name: str) -> dict[str, Any]:
    return {key: value for key, value in LINE.items() if key != name}


LINES: dict[str, tuple[str, str]] = {
    "missing field": (lines(lacks("context")), "row 3, column context: it is empty"),
    "missing column": ("".join(json.dumps(lacks("input")) + "\n"), "has no column input"),
    "null answers": (line(answers=None), "row 3, column answers: it is empty"),
    "no answers": (line(answers=[]), "row 3, column answers: it is an empty list"),
    "blank answers": (line(answers=[" "]), "row 3, column answers: .* says nothing"),
    "null among answers": (line(answers=["City", None]), "has an element that is no text"),
    "null context": (line(context=None), "row 3, column context: it is empty"),
    "no classes": (line(all_classes=None), "row 3, column all_classes: it is empty"),
    "broken line": (lines('{"input": "wh'), "line 4 of .*trec.jsonl is no JSON"),
    "a list": (lines("[1, 2]"), "line 4 of .*trec.jsonl is no JSON object"),
    "another type": (line(context=["a"]), "line 4 of .* has a list of text as context, and line 1"),
    "answers as text": (line(answers="City"), "line 4 of .* has text as answers, and line 1"),
    "all contexts numbers": (json.dumps({**LINE, "context": 3}) + "\n", "column context .* int64"),
    "half a character": (line(input="\ud800"), "half a character"),
    "empty file": ("", "trec.jsonl is empty"),
    "blank lines": ("\n\n", "trec.jsonl is empty"),
}


def ask(root: Path, content: str, **changes: Any) -> Benchmark:
    """longbench_trec on a file of these lines."""
    file = root / "trec.jsonl"
    file.write_text(content)
    overrides = {"dataset_kwargs": {"data_files": {"test": str(file)}}}
    with own_data(root):
        return Benchmark("trec", TaskConfig("longbench_trec", overrides=overrides, **changes))


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, told = LINES[name]
    with pytest.raises(UserError, match=told) as caught:
        ask(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_a_bad_line_can_be_left_out(tmp_path: Path) -> None:
    content = json.dumps({**LINE, "context": None}) + "\n" + line(answers=[])
    asked = ask(tmp_path, content, invalid="skip")
    assert asked.rows == [1, 2, 3]
    assert [fault["row"] for fault in asked.left_out] == [0, 4]
    assert [judged.score for judged in asked.judge(["City", "Date", "City"])] == [1, 0, 1]


DRAWN = {
    "index": 0, "input": "long text. What?", "context_end": 10, "outputs": ["red"],
    "answer_prefix": "", "length": 5, "max_length": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"outputs": []}, "column outputs: it is an empty list"),
        ({"outputs": None}, "column outputs: it is empty"),
        ({"input": None}, "column input: it is empty"),
        ({"context_end": None}, "column context_end: it is empty"),
        ({"context_end": -1}, "column context_end: -1 is negative"),
        ({"answer_prefix": None}, "column answer_prefix: it is empty"),
        ({"max_length": None}, "column max_length: it is empty"),
    ],
)
def test_drawn_rows_are_checked_too(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "vt").mkdir(parents=True)
    table = [DRAWN, {**DRAWN, **changes}]
    pq.write_table(pa.Table.from_pylist(table), folder / "vt" / "test-0.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: vt\n  data_files:\n  - split: test\n    path: vt/*\n---\n"
    )
    config = TaskConfig("ruler_mini_vt", overrides={"dataset_path": str(folder)})
    with pytest.raises(UserError, match=f"row 1, {told}; correct"):
        Benchmark("vt", config)
    asked = Benchmark(
        "vt", TaskConfig(config.lmms_task, overrides=config.overrides, invalid="skip")
    )
    assert asked.rows == [0]
