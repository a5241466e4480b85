"""Questions in the real schema of the hub's MMBench: every rotation, absent options and hints."""

from pathlib import Path
from typing import Any

from datasets import Features, Image, Value

from tests.scoring.lmms_tasks import build, picture, write

WORDS = {
    "en": ("red", "green", "dark blue", "yellow"),
    "cn": ("红色", "绿色", "深蓝色", "黄色"),
}
ASKED = {"en": "What is the color of shape {}?", "cn": "形状{}是什么颜色"}
HINT = {"en": "Look closely.", "cn": "请仔细看。"}
LEVELS = ("perception", "reasoning")
CULTURE = ("index", "question", "answer", *"ABCD", "category", "image", "source")  # of cc


def rows(language: str, questions: int, missing: Any = None) -> list[dict[str, Any]]:
    """`questions` questions of 2 to 4 options, all first rotations first.

    Args:
        language: en or cn.
        questions: how many.
        missing: what stands where an option or hint is not there: None, or the text "nan".
    """
    made = [row for number in range(questions) for row in _turns(language, number, missing)]
    return sorted(made, key=lambda row: row["index"])


def _turns(language: str, number: int, missing: Any) -> list[dict[str, Any]]:
    count = 2 + number % 3
    words = WORDS[language][:count]
    made = []
    for turn in range(count):
        options = [words[(place - turn) % count] for place in range(count)]
        letters = dict(zip("ABCD", [*options, *[missing] * 4][:4], strict=True))
        made.append(
            {
                "index": number + turn * 1_000_000,
                "question": ASKED[language].format(number),
                "hint": HINT[language] if number % 4 == 1 else missing,
                "answer": "ABCD"[options.index(words[number % count])],
                **letters,
                "category": f"kind_{number % 5}",
                "image": picture(number),
                "source": "test",
                "L2-category": LEVELS[number % 2],
                "comment": missing,
                "split": "dev",
            }
        )
    return made


def folder(root: Path, config: str, split: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as the hub repository holds them; a column is there if the first row has it."""
    texts = {name: Value("string") for name in rows[0]}
    features = Features({**texts, "index": Value("int64"), "image": Image()})
    return write(root, config, split, rows, features)


def made(root: Path, name: str, questions: int = 7, missing: Any = None) -> Any:
    """The task `name` on questions of its language, in the schema of its data set."""
    language = "en" if "_en_" in name else "cn"
    config = {"mmbench_cn_cc_static": "cc"}.get(name, language)
    split = "dev" if "_dev" in name else "test"
    table = rows(language, questions, missing)
    if config == "cc":
        table = [{column: row[column] for column in CULTURE} for row in table]
    if "submission" in name:
        table = [{**row, "answer": missing, "split": "test"} for row in table]
    return build(name, folder(root, config, split, table))
