"""Damaged run folders under `evictbench report`: the same report, or one sentence."""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.campaign import kills, scene
from scripts.campaign.bench import Bench
from scripts.campaign.outcome import RIGHT, WRONG, Outcome, Verdict, raw, refused

INPUTS = ("samples.parquet", "manifest.json", "prompts.parquet", "kept.parquet")
prepare = kills.prepare
Damage = Callable[[Path, random.Random], object]


def _again(bench: Bench) -> Path:
    """The sound folder's report once more, to compare with."""
    (sound,) = scene.folders(bench.shared / "runs")

    def make(folder: Path) -> None:
        shutil.copytree(sound, folder)
        told = bench.call("report", str(folder))
        if told.code:
            raise RuntimeError(f"the sound folder is not reported: {told.err}")

    return bench.once("again", make)


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """Damage a copy and report it."""
    said, damage, want, word = CASES[number]
    folder = bench.folder / "run"
    (sound,) = scene.folders(bench.shared / "runs")
    shutil.copytree(sound, folder)
    damage(folder, bench.random)
    drawn = bench.random.random() < 0.1
    outcome = bench.call("report", str(folder), drawn=drawn)
    return said, _judged(bench, outcome, folder, want, word)


def _judged(bench: Bench, outcome: Outcome, folder: Path, want: str, word: str) -> Verdict:
    if want == "refuse" or (outcome.code and want == "either"):
        return refused(outcome, *([word] if word else []))
    bad = raw(outcome)
    if bad is not None or outcome.code:
        return bad or Verdict(WRONG, f"refused: {outcome.errors!r:.300}")
    again = _again(bench)
    for name in ("answer.md", "summary.md"):
        ours, theirs = (_plain(f / name) for f in (folder, again))
        if ours != theirs:
            lines = zip(ours.splitlines(), theirs.splitlines(), strict=False)
            differ = next((f"{a!r:.100} for {b!r:.100}" for a, b in lines if a != b), "its length")
            return Verdict(WRONG, f"{name} is another: {differ}")
    return Verdict(RIGHT)


def _plain(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _bytes(name: str, change: Callable[[bytes, random.Random], bytes | None]) -> Damage:
    def damage(folder: Path, rng: random.Random) -> None:
        path = folder / name
        content = change(path.read_bytes(), rng)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return damage


def _flipped(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return (
        content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
    )


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) // 2)
    return content[:place] + bytes(len(content) // 4) + content[place + len(content) // 4 :]


def _folder_there(name: str) -> Damage:
    def damage(folder: Path, rng: random.Random) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def _looped(name: str) -> Damage:
    def damage(folder: Path, rng: random.Random) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return damage


def _json(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path, rng: random.Random) -> None:
        path = folder / "manifest.json"
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))

    return damage


def _put(key: str, value: Any) -> Damage:
    def change(content: dict[str, Any]) -> None:
        *inner, last = key.split(".")
        node = content
        for part in inner:
            node = node.setdefault(part, {})
        if value is ...:
            node.pop(last, None)
        else:
            node[last] = value

    return _json(change)


def _frame(change: Callable[[pd.DataFrame], Any]) -> Damage:
    def damage(folder: Path, rng: random.Random) -> None:
        path = folder / "samples.parquet"
        frame = pd.read_parquet(path)
        changed = change(frame)
        (frame if changed is None else changed).to_parquet(path, index=False)

    return damage


def _cell(column: str, value: Any) -> Damage:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        numbers = pd.api.types.is_numeric_dtype(frame[column])
        frame = frame.astype({column: str}) if isinstance(value, str) and numbers else frame
        frame.loc[5, column] = value
        return frame

    return _frame(change)


def _doubled(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[:3]])


WAYS: Mapping[str, Callable[[bytes, random.Random], bytes | None]] = {
    "empty": lambda c, r: b"",
    "half": lambda c, r: c[: len(c) // 2],
    "without the last byte": lambda c, r: c[:-1],
    "garbage": lambda c, r: b"garbage" * 40,
    "zeros in it": _zeroed,
    "an LFS pointer": lambda c, r: b"version https://git-lfs.github.com/spec/v1\nsize 1\n",
    "bytes that are no text": lambda c, r: bytes(range(128, 256)) * 4,
}
Case = tuple[str, Damage, str, str]
CASES: tuple[Case, ...] = (
    ("sound", lambda folder, rng: None, "right", ""),
    *((f"{name}: {how}", _bytes(name, way), "refuse", name)
      for name in INPUTS for how, way in WAYS.items()),
    *((f"{name}: a folder", _folder_there(name), "refuse" if name in INPUTS[:2] else "either", name)
      for name in INPUTS),
    *((f"{name}: links to itself", _looped(name), "refuse" if name in INPUTS[:2] else "either",
       name)
      for name in INPUTS),
    *((f"{name}: missing", _bytes(name, lambda c, r: None), "refuse", name) for name in INPUTS[:2]),
    *((f"{name}: a flipped bit, {n}", _bytes(name, _flipped), "either", "")
      for name in INPUTS[:2] for n in range(20)),
    ("no folder", lambda folder, rng: shutil.rmtree(folder), "refuse", "run"),
    ("an empty folder", lambda f, r: (shutil.rmtree(f), f.mkdir()), "refuse", "samples.parquet"),
    ("a file for the folder", lambda f, r: (shutil.rmtree(f), f.write_text("")), "refuse", "run"),
    *((f"manifest: {value!r}", _json(lambda c, v=value: v), "refuse", "manifest.json")
      for value in ([], 3, "x", None, [{}])),
    ("manifest: {}", _json(lambda c: {}), "either", "manifest"),
    *((f"manifest: {key} = {value!r}", _put(key, value), "refuse", "manifest.json")
      for key, value in (
          ("plan", 3), ("plan", []), ("plan", None), ("plan.margin", "x"), ("plan.margin", None),
          ("plan.margin", -1), ("plan.alpha", 7), ("plan.mine", 3), ("plan.resamples", 0),
          ("plan.method", 3), ("plan.contrasts", 3), ("plan.contrasts", [[]]), ("titles", 3),
          ("plan.seed", "x"), ("methods", 3), ("methods", None),
          ("factors", 3), ("factors", {"restkv": 3}), ("factors", None), ("told", 3),
          ("provenance", 3), ("provenance", None), ("window_weights", 3), ("samples", "0" * 64),
          ("samples", 3), ("name", 3), ("question", [1]),
      )),
    *((f"manifest: {key} edited to {value!r}", _put(key, value), "either", "manifest.json")
      for key, value in (
          ("plan.margin", 0.5), ("plan.alpha", 0.4), ("plan.method", "random"),
          ("plan.above", -0.5), ("plan", ...), ("registered", False), ("registered", 3),
          ("registered", ...), ("registration", "All is well."), ("registration", ...),
          ("samples", ...), ("provenance", ...), ("methods", {}), ("methods", ...),
          ("factors", {}), ("weights", "x"), ("data", 3), ("told", ["x"]), ("name", "other"),
      )),
    *((f"samples: no column {name}", _frame(lambda f, n=name: f.drop(columns=n)), "refuse",
       "samples.parquet")
      for name in ("model", "task", "method", "ratio", "score", "cell_key", "row", "question_id",
                   "text", "control", "correct", "exposed_tokens", "protocol", "kept_tokens")),
    *((f"samples: no column {name}", _frame(lambda f, n=name: f.drop(columns=n)), "either",
       "samples.parquet")
      for name in ("group", "metric", "extraction", "score_other", "letter_logits", "category",
                   "unparsed", "fallback", "prefill_s", "budget", "answer", "question")),
    *((f"samples: {column} of a row = {value!r}", _cell(column, value), "either",
       "samples.parquet")
      for column, value in (
          ("score", 0.5), ("score", 7.0), ("score", float("nan")), ("score", -1.0),
          ("text", "Z"), ("ratio", 2.0), ("ratio", float("nan")), ("row", 999),
          ("method", "restkw"), ("cell_key", "x"), ("question_id", 77), ("correct", True),
          ("letter_logits", "x"), ("letter_logits", "{}"), ("exposed_tokens", 0), ("task", "y"),
          ("kept_tokens", float("inf")), ("score", "text"), ("model", "other"), ("control", "z"),
      )),
    ("samples: no rows", _frame(lambda f: f.iloc[:0]), "refuse", "samples.parquet"),
    ("samples: half the rows", _frame(lambda f: f.iloc[: len(f) // 2]), "refuse", "samples"),
    ("samples: rows twice", _frame(_doubled), "refuse", "samples"),
    ("samples: in another order", _frame(lambda f: f.iloc[::-1]), "either", "samples"),
    ("samples: no full cache", _frame(lambda f: f[f["method"] != "full"]), "refuse", "samples"),
    ("samples: all text columns", _frame(lambda f: f.astype(str)), "refuse", "samples"),
    ("samples: one more column", _frame(lambda f: f.assign(mine=1)), "either", ""),
    ("samples: another table", _frame(lambda f: pd.DataFrame({"a": [1]})), "refuse", "samples"),
)  # fmt: skip
COUNT = len(CASES)
SAMPLE = (2, 9)
