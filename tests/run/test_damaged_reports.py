"""A report from damaged files is one sentence naming the file, and leaves the earlier report."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.errors import UserError
from harness.report import build, page, reading
from harness.report.reading import KEPT, MANIFEST, PROMPTS, SAMPLES, SUMS
from harness.run import report as command
from tests.outputs.conftest import sweep

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run with a report."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    folder.mkdir()
    samples = sweep(("random", "restkv"), ratios=(0.9,), questions=3)
    manifest = {"name": "run", "plan": {"resamples": 199}, "told": [], "methods": {}}
    manifest |= {"window_weights": {"restkv": {"weights": [0.5, 0.5], "behind": False}}}
    samples.to_parquet(folder / SAMPLES, index=False)
    place = {"model": "tiny", "task": "mini", "protocol": "replay", "row": [0], "image": [None]}
    prompt = {"segments": ['[["image", 64], ["question", 37]]'], "tokens": None, "images": "[]"}
    pd.DataFrame(place | prompt).to_parquet(folder / PROMPTS, index=False)
    kept = {"method": "restkv", "cell_key": "k", "shares": [[0.5] * 101]}
    pd.DataFrame(place | kept).to_parquet(folder / KEPT, index=False)
    manifest["samples"] = build.digest(pd.read_parquet(folder / SAMPLES))
    (folder / MANIFEST).write_text(json.dumps(manifest))
    reading.seal(folder)
    assert command.main([str(folder)]) == 0
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def changed(name: str, value: object) -> Damage:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text()) | {name: value}
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return damage


def cut(name: str, share: float) -> Damage:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: int(share * (folder / name).stat().st_size)]
    )


def foreign(name: str) -> Damage:
    return lambda folder: pd.DataFrame({"a": [1]}).to_parquet(folder / name)


def lacking(column: str) -> Damage:
    return lambda folder: (
        pd.read_parquet(folder / SAMPLES).drop(columns=column).to_parquet(folder / SAMPLES)
    )


def holding(column: str, value: object) -> Damage:
    return lambda folder: (
        pd.read_parquet(folder / SAMPLES).assign(**{column: value}).to_parquet(folder / SAMPLES)
    )


DAMAGES: dict[str, tuple[str, Damage]] = {
    **{f"no {name}": (name, cut(name, 0)) for name in (MANIFEST, SAMPLES, PROMPTS, KEPT)},
    **{f"half of {name}": (name, cut(name, 0.5)) for name in (MANIFEST, SAMPLES, PROMPTS, KEPT)},
    **{
        f"text in {name}": (name, lambda folder, name=name: (folder / name).write_text("hello"))
        for name in (MANIFEST, SAMPLES, PROMPTS, KEPT, SUMS)
    },
    **{f"another {name}": (name, foreign(name)) for name in (SAMPLES, PROMPTS, KEPT)},
    "not utf-8": (MANIFEST, lambda folder: (folder / MANIFEST).write_bytes(b"\xff{}")),
    "manifest of nothing": (MANIFEST, lambda folder: (folder / MANIFEST).write_text("{}")),
    "a list": (MANIFEST, lambda folder: (folder / MANIFEST).write_text("[1, 2]")),
    "a folder": (MANIFEST, lambda f: ((f / MANIFEST).unlink(), (f / MANIFEST).mkdir())),
    "plan of text": (MANIFEST, changed("plan", "none")),
    "a plan of another version": (MANIFEST, changed("plan", {"speed": 3})),
    "a pair of no labels": (MANIFEST, changed("plan", {"contrasts": [{"label": "x"}]})),
    "pairs of text": (MANIFEST, changed("plan", {"contrasts": "x"})),
    "titles of another kind": (MANIFEST, changed("titles", ["x"])),
    "a margin of text": (MANIFEST, changed("plan", {"margin": "2"})),
    "methods of text": (MANIFEST, changed("methods", "all")),
    "a method of text": (MANIFEST, changed("methods", {"restkv": "restkv"})),
    "factors of a number": (MANIFEST, changed("factors", {"restkv": 3})),
    "told in one": (MANIFEST, changed("told", "nothing")),
    "windows of text": (MANIFEST, changed("window_weights", {"restkv": {"weights": "x"}})),
    "registered in words": (MANIFEST, changed("registered", "yes")),
    "name of none": (MANIFEST, changed("name", None)),
    "a column less": (SAMPLES, lacking("correct")),
    "no rows": (SAMPLES, lambda folder: pd.read_parquet(folder / SAMPLES)[:0].to_parquet(
        folder / SAMPLES)),
    "numbers of text": (SAMPLES, holding("kept_tokens", "many")),
    "another answer": (SAMPLES, holding("correct", True)),
}  # fmt: skip


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "earlier"])
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_named(run: Path, capsys, what: str, sealed: bool):
    name, damage = DAMAGES[what]
    if not sealed and what in ("another answer", f"text in {SUMS}"):
        pytest.skip("nothing tells")
    if not sealed:
        (run / SUMS).unlink()
    damage(run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    capsys.readouterr()
    assert command.main([str(run)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert str(run / name) in told or (run / name).is_dir()
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "earlier"])
@pytest.mark.parametrize("name", [SAMPLES, PROMPTS, KEPT, MANIFEST, SUMS])
def test_a_flipped_bit_is_named(run: Path, name: str, sealed: bool):
    draw = random.Random(f"{name}")
    good = (run / name).read_bytes()
    if not sealed:
        (run / SUMS).unlink()
    for _ in range(12):
        place = draw.randrange(len(good))
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        (run / name).write_bytes(bad)
        if sealed:
            with pytest.raises(UserError, match="/run"):
                build.read(run)
            continue
        try:  # earlier folders have no sums: what cannot be read is named
            if name == MANIFEST:
                reading.manifest(run)
            elif name != SUMS:
                reading.table(run, name)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_report_that_fails_leaves_the_earlier_one(run: Path, monkeypatch, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}

    def broken(*given: object) -> None:
        raise ValueError("a picture is damaged")

    monkeypatch.setattr(page, "write", broken)
    assert command.main([str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
