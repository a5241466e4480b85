"""Tiny LongBench data in the released schema, written as the hub's archive, with answers to score.

Everything here is made up for the tests: no row comes from the benchmark.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

E_TASKS = [
    *("qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec"),
    *("triviaqa", "samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
]
LENGTHS = (1200, 3999, 4000, 7999, 8000, 20000)  # both sides of LongBench-E's two borders


@dataclass(frozen=True)
class Case:
    """What a task's rows hold, an answer that scores 1 and one that scores 0."""

    answers: list[str]
    right: str
    wrong: str
    language: str = "en"
    all_classes: list[str] | None = None


QA = Case(["the Blue Door", "a gate"], "Blue door.", "window")
SUMMARY = Case(["Mira sold her boat. Tom was glad"], "Mira sold her boat. Tom was glad", "no idea")
CODE = Case(["    return total + 1"], "\n    return total + 1\n# done", "# 0")
CASES: dict[str, Case] = {
    "narrativeqa": QA,
    "qasper": QA,
    "multifieldqa_en": QA,
    "multifieldqa_zh": Case(["北京大学"], "北京大学。", "上海", "zh"),
    "hotpotqa": QA,
    "2wikimqa": QA,
    "musique": QA,
    "dureader": Case(["会议 讨论 预算"], "会议 讨论 预算", "天气", "zh"),
    "gov_report": SUMMARY,
    "qmsum": SUMMARY,
    "multi_news": SUMMARY,
    "vcsum": Case(["会议讨论了预算"], "会议讨论了预算", "天气", "zh"),
    "trec": Case(
        ["City"], "City\nQuestion: next", "Colour\nCity", "en", ["City", "Colour", "Date"]
    ),
    "triviaqa": Case(["Paris"], "\nParis\n\nPassage: next", "Rome\nParis"),
    "samsum": SUMMARY,
    "lsht": Case(["体育"], "体育\n新闻", "教育\n体育", "zh", ["体育", "教育"]),
    "passage_count": Case(["7"], "There are 7.", "8"),
    "passage_retrieval_en": Case(["Paragraph 3"], "Paragraph 3", "Paragraph 4"),
    "passage_retrieval_zh": Case(["段落12"], "段落12", "段落1", "zh"),
    "lcc": CODE,
    "repobench-p": CODE,
}


def row(task: str, length: int, number: int = 0) -> dict[str, Any]:
    """One row in the archive's schema; its texts name the task, the field and the number."""
    case = CASES[task]
    return {
        "input": f"<{task} input {number} {{context}}>",  # braces in data are no placeholders
        "context": f"<{task} context {number}\n{{input}}>",
        "answers": case.answers,
        "length": length,
        "dataset": task,
        "language": case.language,
        "all_classes": case.all_classes,
        "_id": f"{number:048x}",
    }


def write_longbench(root: Path) -> Path:
    """Write `<root>/THUDM/LongBench/data.zip` with all 34 files; returns its path."""
    path = root / "THUDM" / "LongBench" / "data.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [(task, task) for task in CASES] + [(f"{task}_e", task) for task in E_TASKS]
    with zipfile.ZipFile(path, "w") as archive:
        for name, task in names:
            lines = [json.dumps(row(task, n, i), ensure_ascii=False) for i, n in enumerate(LENGTHS)]
            archive.writestr(f"data/{name}.jsonl", "".join(f"{line}\n" for line in lines))
    return path
