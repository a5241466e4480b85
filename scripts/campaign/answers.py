"""What a model can say: nothing of it stops a run, and letters are read in every spelling.

The engine names the right letter with the full cache and a wrong one in all other cells.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from harness.settings.grid import Cell
from scripts.campaign import scene, tables
from scripts.campaign.bench import Bench
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, WRONG, Outcome, Verdict, raw

Case = Callable[[Bench], tuple[str, Verdict]]
CHINESE = "mmbench_cn_dev"


def prepare(shared: Path) -> None:
    """The data, in English and for the task in Chinese."""
    scene.prepare(shared)
    tables.write(shared / "cn", tables.rows(), config="cn")


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """Say one thing everywhere, or one spelling of letters."""
    return CASES[number](bench)


def _speaking(template: str) -> Scripted:
    """Says the template, with the right letter for X where nothing is evicted, else a wrong one."""
    asked = [(_marks(row), str(row["answer"])) for row in tables.rows()]

    def says(cell: Cell, text: str, letters: Sequence[str]) -> str:
        (right,) = {answer for marks, answer in asked if all(mark in text for mark in marks)}
        if cell.evicts or cell.control != "none":
            right = next(letter for letter in "AB" if letter != right)
        return template.replace("{X}", right).replace("{W}", chr(ord(right) + 0xFEE0))

    return Scripted(says)


def _marks(row: tables.Row) -> list[str]:
    options = [f"{letter}. {row[letter]}" for letter in "ABCD" if row[letter] is not None]
    return [row["question"], *options]


def _ask(bench: Bench, engine: Scripted, *more: str) -> Outcome:
    runs = bench.folder / "runs"
    argv = scene.settings(bench.shared, runs, *more)
    if f"task={CHINESE}" in more:
        argv = [text for text in argv if "dataset_path" not in text]
        argv.append(f"tasks.{CHINESE}.overrides.dataset_path={bench.shared / 'cn'}")
    return bench.call(*argv, engine=engine)


def _said(text: str) -> Case:
    """One text everywhere, in three runs: two of the sweep and a report."""

    def case(bench: Bench) -> tuple[str, Verdict]:
        said = f"every answer is {text!r:.60}"
        for _ in range(2):
            outcome = _ask(bench, Scripted(lambda cell, prompt, letters: text))
            bad = raw(outcome)
            if bad is not None or outcome.code:
                return said, bad or Verdict(WRONG, f"stopped: {outcome.errors!r:.300}")
        (folder,) = scene.folders(bench.folder / "runs")
        told = bench.call("report", str(folder), drawn=True)
        bad = raw(told)
        if bad is not None or told.code:
            return said, bad or Verdict(WRONG, f"no report: {told.errors!r:.300}")
        held = set(scene.samples(folder)["text"])
        if held != {text}:
            return said, Verdict(WRONG, f"on record is {sorted(held)!r:.80}")
        return said, Verdict(RIGHT)

    return case


def _read(template: str, *more: str, english: bool = True) -> Case:
    """A spelling of a letter: right with the full cache, wrong elsewhere."""

    def case(bench: Bench) -> tuple[str, Verdict]:
        said = f"{template!r} {' '.join(more)}"
        outcome = _ask(bench, _speaking(template), *more)
        bad = raw(outcome)
        if bad is not None or outcome.code:
            return said, bad or Verdict(WRONG, f"refused: {outcome.errors!r:.300}")
        (folder,) = scene.folders(bench.folder / "runs")
        frame = scene.samples(folder)
        for _, row in frame.iterrows():
            right = float(row["method"] == "full")
            if row["score"] != right:
                warned = "English" in outcome.out + (folder / "summary.md").read_text()
                if not english and warned and row["unparsed"]:
                    return said, Verdict(RIGHT, "unread, and said to be for English")
                what = f"{row['text']!r:.60} for {row['answer']} scores {row['score']}"
                return said, Verdict(WRONG, what)
        return said, Verdict(RIGHT)

    return case


TEXTS = (
    "", " ", "\n", "\x00", "A\x00B", "\x01\x02\x08\x0b\x0c\x0e\x1f", "\x1b[2J\x1b[31m", "\x7f",
    "\ufeffA", "\u202eA", "\ufffe", "😀", "=1+1", "=cmd|' /C calc'!A0", "+1", "@SUM(A1)",
    "<script>alert(1)</script>", "</td></tr>", "| a | b |\n|---|", "'; DROP TABLE responses; --",
    "{{ x }}", "{0}", "%s", "$HOME", "\\", '"', "`", "nan", "None", "null", "NaN", "0", "-1", "[]",
    "A" * 100_000, "word " * 10_000, "\r\n" * 50, "a\tb", "_x000D_", "é" * 40_000, "\u2028", "\x85",
)  # fmt: skip
ENGLISH = (
    "{X}", " {X}", "{X}.", "({X})", "{X})", "{X}:", "[{X}]", "**{X}**", "{X}\n", "\n{X}",
    "The answer is {X}.", "The correct answer is {X}.", "Answer: {X}", "Option {X}",
)  # fmt: skip
OTHER = (
    "答案是{X}", "答案是\uff1a{X}", "选{X}", "选择{X}", "选项{X}", "\uff08{X}\uff09", "{X}。",
    "{W}", "正确答案\uff1a{X}",
    "答案\uff1a{X}。", "应该选{X}。", "答案是选项{X}", "【{X}】", "{X}、",
    "正确答案是{X}。",
)  # fmt: skip
STRICT = "extraction=strict"
CASES: tuple[Case, ...] = (
    *(_said(text) for text in TEXTS),
    *(_read(text) for text in ENGLISH),
    *(_read(text, STRICT) for text in ENGLISH),
    *(_read(text, f"task={CHINESE}") for text in OTHER),
    *(_read(text, f"task={CHINESE}", STRICT, english=False) for text in OTHER),
)
COUNT = len(CASES)
SAMPLE = ()  # tests of the run hold these
