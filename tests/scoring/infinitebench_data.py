"""Tiny InfiniteBench data in the released schema, as the hub's files, with answers to score.

Everything here is made up for the tests: no row comes from the benchmark.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A task's question, references and options, an answer that scores 1 and one that scores 0."""

    input: str
    answer: list[Any]
    right: str
    wrong: str
    options: tuple[str, ...] = ()


NAMES = ("load_page", "Cache.drop", "save_page", "main")
BOOK = ("in the barn", "at sea", "by the mill", "nowhere")
MASK = "Which character is $$MASK$$ ?"
LIST = "You should answer with only one number, no other words. The {} of the list is: "
CASES: dict[str, Case] = {
    "passkey": Case("What is the pass key?", ["71432"], " 71432. Remember", " 7143"),
    "number_string": Case("What is the sequence of digits?", ["2200011"], " 2200011.", " 22000111"),
    "kv_retrieval": Case('\nKey: "k-1"\nThe value is: ', ["ab-12"], '"ab-12"}', '"ab-123"'),
    "longbook_sum_eng": Case("", ["Mira left.\nTom stayed."], "Mira left.\nTom stayed.", "no"),
    "longbook_choice_eng": Case("Where?", ["at sea"], " B. at sea", " A. in the barn", BOOK),
    "longbook_qa_eng": Case("Who left?", ["Mira", "the girl"], "Mira.", "Tom"),
    "longbook_qa_chn": Case("谁走了", ["小明", "明"], "小明。", "他"),
    "longdialogue_qa_eng": Case(MASK, ["MIRA", "MIRA STONE"], " Mira.", " Tom"),
    "math_find": Case(LIST.format("second largest number"), [88], " 88\n", " 87"),
    "math_calc": Case("The value is: ", [4, 8, 5], " [4, 8, 5]", " [3, 8, 5]"),
    "code_run": Case("Please give me the value of func_12(-3).", [-5], " -5.", " 5."),
    "code_debug": Case("", ["Cache.drop"], " B. Cache.drop", " C. save_page", NAMES),
}
MEDIAN = Case(LIST.format("median number"), [48.5], " 48.5", " 48")  # a later kind of math_find row


def row(task: str, number: int, case: Case) -> dict[str, Any]:
    """One row in the files' schema."""
    return {
        "id": number,
        "context": f"<{task} context {number}\n{{input}}>",  # braces in data are no placeholders
        "input": case.input,
        "answer": case.answer,
        "options": list(case.options),
    }


def write_infinitebench(root: Path) -> Path:
    """Write the 12 files to `<root>/xinrongzhang2022/InfiniteBench`; returns that folder."""
    folder = root / "xinrongzhang2022" / "InfiniteBench"
    folder.mkdir(parents=True, exist_ok=True)
    for task, case in CASES.items():
        cases = [case, MEDIAN if task == "math_find" else case]
        lines = [json.dumps(row(task, i, c), ensure_ascii=False) for i, c in enumerate(cases)]
        (folder / f"{task}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return folder
