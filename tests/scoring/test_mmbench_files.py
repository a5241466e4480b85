"""MMBench's files: what goes to its server, and what comes as its official tables."""

import base64
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from harness.errors import UserError
from harness.scoring import mmbench_submission, mmbench_tsv
from harness.scoring.mmbench import MMBench
from tests.scoring import mmbench_data
from tests.scoring.lmms_tasks import build, results
from tests.scoring.mmbench_data import made


@pytest.mark.parametrize("name", ["mmbench_en_test_submission", "mmbench_cn_test_submission"])
@pytest.mark.parametrize("missing", [None, "nan"])
def test_a_split_with_secret_answers_gives_a_file_and_no_score(
    tmp_path: Path, name: str, missing: Any
) -> None:
    task = made(tmp_path / "data", name, missing=missing)
    documents = list(task.eval_docs_no_media)
    texts = ["A", "=B", "C\x00\x1b", "x" * 40_000] * len(documents)
    texts = texts[: len(documents)]
    scorer = MMBench()
    questions = [scorer.question(task, d, i) for i, d in enumerate(documents)]
    judged = [scorer.judge(d, m) for d, m in zip(documents, results(task, texts), strict=True)]
    assert {q.answer for q in questions} == {""}
    assert not any(j.correct for j in judged)
    assert [j.parsed for j in judged][:2] == ["A", "B"]
    assert scorer.total(questions, judged) is None
    assert task.aggregation()["gpt_eval_score"]([]) != task.aggregation()["gpt_eval_score"](
        []
    )  # nan

    path = mmbench_submission.write(documents, texts, tmp_path / "deep" / "cell.xlsx")
    assert [p.name for p in path.parent.iterdir()] == ["cell.xlsx"]
    header, *rows = openpyxl.load_workbook(path).active.iter_rows()
    names = [cell.value for cell in header]
    # what https://github.com/open-compass/MMBench asks for, in its README
    asked = {"question", "A", "B", "C", "D", "prediction", "category", "l2_category", "index"}
    assert set(names) == asked
    assert len(rows) == len(documents)
    for row, document, text in zip(rows, documents, texts, strict=True):
        cells = dict(zip(names, row, strict=True))
        assert cells["index"].value == document["index"]
        assert cells["question"].value == document["question"]
        assert cells["l2_category"].value == document["L2-category"]
        options = 2 + document["index"] % 1_000_000 % 3
        assert [cells[c].value is None for c in "ABCD"] == [i >= options for i in range(4)]
        assert cells["prediction"].value == text.replace("\x00\x1b", "")[:32_767]
        assert cells["prediction"].data_type == "s"
    with pytest.raises(ValueError):
        mmbench_submission.write(documents, texts[1:], tmp_path / "short.xlsx")
    assert not (tmp_path / "short.xlsx").exists()


def test_rows_without_a_column_for_answers_are_read(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in mmbench_data.rows("en", 3)]
    task = build("mmbench_en_test_submission", mmbench_data.folder(tmp_path, "en", "test", rows))
    documents = list(task.eval_docs_no_media)
    judged = [
        MMBench().judge(d, m) for d, m in zip(documents, results(task, ["B"] * 9), strict=True)
    ]
    assert {(j.parsed, j.correct) for j in judged} == {("B", False)}


def test_the_official_table_becomes_the_same_questions(tmp_path: Path) -> None:
    rows = mmbench_data.rows("en", 5)
    first = {row["index"] % 1_000_000: row["index"] for row in rows[::-1]}
    names = [
        "index",
        "question",
        "hint",
        *"ABCD",
        "answer",
        "category",
        "image",
        "l2-category",
        "split",
    ]
    lines = ["\t".join(names)]
    for row in rows:
        main = row["index"] == first[row["index"] % 1_000_000]
        # turned rows name the row whose image they share
        picture = base64.b64encode(row["image"]["bytes"]).decode()
        shown = {**row, "l2-category": row["L2-category"]}
        shown["image"] = picture if main else str(first[row["index"] % 1_000_000])
        lines.append("\t".join("" if shown[n] is None else str(shown[n]) for n in names))
    table = tmp_path / "MMBench_DEV_EN_V11.tsv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    mmbench_tsv.convert(table, tmp_path / "v11", "en", "test")
    mmbench_tsv.convert(table, tmp_path / "v11", "en", "dev")
    task = build("mmbench_en_dev_static", tmp_path / "v11")
    plain = build("mmbench_en_dev_static", mmbench_data.folder(tmp_path / "x", "en", "dev", rows))
    assert len(task.eval_docs) == len(rows)
    for ours, theirs in zip(task.eval_docs, plain.eval_docs, strict=True):
        assert task.doc_to_text(ours) == plain.doc_to_text(theirs)
        assert [ours[n] for n in ("index", "answer", "category", "L2-category")] == [
            theirs[n] for n in ("index", "answer", "category", "L2-category")
        ]
        assert ours["image"].tobytes() == theirs["image"].tobytes()
    with pytest.raises(UserError, match="no table"):
        mmbench_tsv.convert(tmp_path / "gone.tsv", tmp_path / "v11", "en", "dev")
    table.write_text("a\tb\n1\t2\n")
    with pytest.raises(UserError, match="lacks the columns index, question"):
        mmbench_tsv.convert(table, tmp_path / "v11", "en", "dev")


def test_a_readme_of_something_else_is_never_written_over(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# a project")
    table = tmp_path / "table.tsv"
    table.write_text("index\tquestion\n1\tWhat?\n")
    with pytest.raises(UserError, match="is not of a data set made here"):
        mmbench_tsv.convert(table, tmp_path, "en", "dev")
    assert card.read_text() == "# a project"
    assert not (tmp_path / "en").exists()
