"""A sample of the campaign: no case of it may be wrong or end in a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.campaign.outcome import BAD, RIGHT, SENTENCE, WRONG, Outcome, raw, refused
from scripts.campaign.runner import KINDS, kind

ROOT = Path(__file__).resolve().parents[2]
LEAST = {
    "overrides": 200, "data": 90, "folders": 60, "kills": 25, "signals": 15, "disks": 20,
    "flips": 400, "reports": 40, "pairs": 5, "parts": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("campaign")
    command = [sys.executable, "-m", "scripts.campaign", "--sample", "--scratch", folder / "work"]
    done = subprocess.run(
        [*command, "--out", folder / "out"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in (folder / "out" / "cases.jsonl").open()]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if kind(name).SAMPLE])
def test_a_sample_of_each_kind_is_right_or_one_sentence(tried: list[dict], name: str) -> None:
    mine = [one for one in tried if one["kind"] == name]
    assert mine
    assert [one for one in mine if one["label"] in BAD] == []


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_the_whole_has_enough_of_each_kind(name: str, least: int) -> None:
    assert least <= kind(name).COUNT


def ended(code: int, err: str, loaded: bool = False) -> Outcome:
    return Outcome(("x",), code, "", err, 1.0, loaded=loaded)


BAR = "sweep: 100%|█████████| 11/11 [00:00<00:00, 13.31row/s, 6 cells/row]"


def test_a_lone_sentence_is_a_refusal_and_progress_bars_are_no_words() -> None:
    said = "error: limit=0 asks for no question: use 1."
    assert refused(ended(2, f"{said}\n"), "limit").label == SENTENCE
    assert refused(ended(2, f"\r{BAR}\r{BAR}\n{said}\n"), "limit").label == SENTENCE
    assert refused(ended(2, f"{said}\n"), "seed").label == WRONG
    assert refused(ended(2, f"{said}\n", loaded=True), "limit").label == WRONG
    assert refused(ended(0, "")).label == WRONG
    assert refused(ended(2, f"{said}\n{said}\n")).label == WRONG
    assert refused(ended(2, "")).label == WRONG
    assert refused(ended(-9, f"{said}\n")).label == WRONG


@pytest.mark.parametrize(
    "text",
    [
        "Traceback (most recent call last):\n  x\nKeyError: 'a'",
        "error: 'NoneType' object has no attribute 'get'.",
        "error: cannot be read (KeyError('x')).",
        "Generating dev split: 9 examples",
        "/x/y.py:3: UserWarning: mind this",
        f"{BAR}\nThe image processor is slow",
    ],
)
def test_what_libraries_say_is_no_sentence(text: str) -> None:
    assert raw(ended(2, text)) is not None
    assert raw(ended(0, text)) is not None


def test_an_end_without_words_is_fine() -> None:
    assert raw(ended(0, f"\r{BAR}\n")) is None
    assert RIGHT not in BAD
