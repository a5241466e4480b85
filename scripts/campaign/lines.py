"""JSON lines in LongBench's schema, packed as its archive is: sound, faulty and odd."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.campaign import scene
from scripts.campaign.bench import Bench
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, WRONG, Outcome, Verdict, raw, refused

Case = Callable[[Bench], tuple[str, Verdict]]
CLASSES = ["City", "Colour", "Date"]
TASK = "longbench_trec"


def rows() -> list[dict[str, Any]]:
    """Four rows whose answer is one of three classes."""
    return [
        {
            "input": f"Question: what is {number}?\nType:",
            "context": f"Question: where is {number}?\nType: City",
            "answers": [CLASSES[number % 3]],
            "length": 100 * number + 50,
            "dataset": "trec",
            "language": "en",
            "all_classes": CLASSES,
            "_id": f"{number:048x}",
        }
        for number in range(4)
    ]


def pack(folder: Path, content: str | bytes, member: str = "data/trec.jsonl") -> Path:
    """The archive under `folder`, where EVICTBENCH_DATA finds it."""
    path = folder / "THUDM" / "LongBench" / "data.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def text(table: list[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


def ask(bench: Bench, folder: Path) -> Outcome:
    """The small run on the packed lines: every cell says City."""
    usual = scene.settings(bench.shared, bench.folder / "runs")
    kept = [x for x in usual if "tasks." not in x]
    return bench.call(
        *kept,
        "task=longbench",
        f"tasks.longbench.lmms_task={TASK}",
        engine=Scripted(lambda cell, said, letters: "City"),
        environment={"EVICTBENCH_DATA": str(folder)},
    )


def judged(bench: Bench, outcome: Outcome, want: str, right: list[float]) -> Verdict:
    """A refusal before the model, or the scores of the rows that say City."""
    if want == "refuse" or (want == "either" and outcome.code and not raw(outcome)):
        return refused(outcome)
    bad = raw(outcome)
    if bad is not None or outcome.code:
        return bad or Verdict(WRONG, f"refused: {outcome.errors!r:.300}")
    (folder,) = scene.folders(bench.folder / "runs")
    frame = scene.samples(folder)
    for _, cell in frame.groupby("cell_key"):
        found = list(cell.sort_values("row")["score"])
        if found != right:
            return Verdict(WRONG, f"scores {found} in place of {right}")
    return Verdict(RIGHT)


def _lines(
    said: str,
    change: Callable[[list[dict[str, Any]]], Any],
    want: str = "refuse",
    right: tuple[float, ...] = (1.0, 0.0, 0.0, 1.0),
) -> Case:
    """Rows or a text in their place."""

    def case(bench: Bench) -> tuple[str, Verdict]:
        table = rows()
        made = change(table)
        content = made if isinstance(made, (str, bytes)) else text(made or table)
        pack(bench.folder / "own", content)
        outcome = ask(bench, bench.folder / "own")
        return f"lines: {said}", judged(bench, outcome, want, list(right))

    return case


def _archive(said: str, spoil: Callable[[Path], object], want: str = "refuse") -> Case:
    def case(bench: Bench) -> tuple[str, Verdict]:
        spoil(pack(bench.folder / "own", text(rows())))
        outcome = ask(bench, bench.folder / "own")
        return f"archive: {said}", judged(bench, outcome, want, [1.0, 0.0, 0.0, 1.0])

    return case


def _set(**values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda table: table[1].update(values)


def _drop(name: str) -> Callable[[list[dict[str, Any]]], None]:
    def change(table: list[dict[str, Any]]) -> None:
        for row in table:
            del row[name]

    return change


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def _elsewhere(path: Path) -> None:
    pack(path.parents[2], text(rows()), "trec.jsonl")


CASES: tuple[Case, ...] = (
    _lines("sound", lambda t: t, "right"),
    _lines("a broken line", lambda t: text(t) + '{"input": \n'),
    _lines("half the last line", lambda t: text(t)[:-40]),
    _lines("no lines", lambda t: ""),
    _lines("blank lines between", lambda t: text(t).replace("\n", "\n\n"), "either"),
    _lines("a byte order mark", lambda t: "\ufeff" + text(t), "either"),
    _lines("Windows line ends", lambda t: text(t).replace("\n", "\r\n"), "right"),
    _lines("one array", lambda t: json.dumps(t), "either"),
    _lines("Latin-1 bytes", lambda t: text(t).replace("City", "Cité").encode("latin-1")),
    _lines("zeros", lambda t: bytes(400)),
    _lines("an LFS pointer", lambda t: "version https://git-lfs.github.com/spec/v1\nsize 1\n"),
    _lines("answers null", _set(answers=None)),
    _lines("answers empty", _set(answers=[])),
    _lines("answers a text", _set(answers="City")),
    _lines("an answer null", _set(answers=[None])),
    _lines("an empty answer", _set(answers=[""]), "either"),
    _lines("answers of numbers", _set(answers=[3])),
    _lines("an answer that is no class", _set(answers=["Town"]), "either"),
    _lines("context null", _set(context=None)),
    _lines("context empty", _set(context=""), "either"),
    _lines("context a number", _set(context=3)),
    _lines("input null", _set(input=None)),
    _lines("classes null", _set(all_classes=None)),
    _lines("classes empty", _set(all_classes=[]), "either"),
    _lines("a length that is text", _set(length="long"), "either"),
    _lines("a length that is null", _set(length=None), "either"),
    _lines("NaN for a length", _set(length=float("nan")), "either"),
    _lines("an id twice", _set(_id="0" * 48), "either"),
    _lines("more columns", _set(mine={"a": [1]}), "either"),
    *(_lines(f"no column {n}", _drop(n)) for n in ("answers", "context", "input", "all_classes")),
    *(_lines(f"no column {n}", _drop(n), "either") for n in ("length", "_id", "language")),
    _lines("control characters", _set(context="a\x00b\x1b[2J"), "either"),
    _lines("a lone surrogate", lambda t: text(t).replace("where is 1", "\\ud800"), "either"),
    _archive("cut", _cut),
    _archive("empty", lambda p: p.write_bytes(b"")),
    _archive("no archive", lambda p: p.write_text("hello")),
    _archive("the member elsewhere", _elsewhere),
    _archive("a folder in its place", lambda p: (p.unlink(), p.mkdir())),
)
