"""`evictbench check` through the command line, on the embedded model."""

import re
from pathlib import Path

import pytest

from harness.engine import branch
from harness.run import collect, lines, trial
from harness.run.lines import percent
from harness.scoring import loading
from harness.settings.grid import Cell
from methods import Selection
from tests.run.conftest import Program

SMALL = ("limit=1", "method=[random,snapkv,streaming_llm_cache]", "ratios=[0.5]")


@pytest.fixture
def check(
    call: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Run it in an empty folder: exit code, output, errors. Nothing is left there."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def run(*typed: str) -> tuple[int, str, str]:
        code = call("check", *typed)
        assert list(tmp_path.iterdir()) == []
        return code, *capsys.readouterr()

    return run


def text_of(out: str) -> dict[str, str]:
    """What is said under each name, its lines joined."""
    parts = re.split(r"^(\w+) *", re.sub(r"\n {9}", " ", out), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))


def test_a_sweep_that_works_is_ok(check) -> None:
    code, out, err = check(*SMALL)
    assert (code, err, out.splitlines()[-1]) == (0, "", "ok")
    assert max(map(len, out.splitlines())) <= 80
    said = text_of(out)
    assert said["model"] == "LlavaForConditionalGeneration (llava), float32 on cpu"
    assert said["layers"] == "6 of 6 can be evicted"
    assert re.fullmatch(r"mmbench_mini: \d rows x 10 cells", said["task"])  # twice 3, full, blank
    assert re.match(r"1\d\d to 1\d\d tokens, median 1\d\d, of \d sampled;.*2,048", said["prompts"])
    assert said["masked"].startswith("logits of 6 cells on 2 rows differ")
    assert said["masked"].endswith(
        "not compared, for they move positions or hold entries in few bits: streaming_llm_cache"
    )
    assert "4 cells decode together" in said["cache"]
    for name, part in (
        ("split", "0.01 % is noise"),
        ("split", "(0.0001 % is noise)"),
        ("time", "for all"),
        ("sweep", "device-hours"),
    ):
        assert part in said[name]


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0 %"), (2.94e-7, "0.000029 %"), (1e-4, "0.01 %"), (0.1234, "12 %"), (1, "100 %")],
)
def test_shares_are_told_without_exponents(share: float, said: str) -> None:
    assert percent(share) == said


def test_every_task_is_tried_and_empty_cells_are_noted(check) -> None:
    tasks = "task=[mmbench_mini,needle_mini]"
    code, out, _ = check("limit=1", "method=snapkv", "ratios=[0.9]", "protocol=paper", tasks)
    assert code == 0
    assert out.count("no token of these answers came from an evicted cache") == 1 + out.count(
        "x 2 cells"
    )
    assert len(re.findall(r"^masked", out, re.MULTILINE)) == 2


def test_an_engine_that_keeps_something_else_is_found(
    check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the entries before those that the policy chose."""
    original = branch._chosen

    def beside(filled, rank, cell, heads, length):
        chosen = original(filled, rank, cell, heads, length)
        return Selection((chosen.positions - 1).clamp_min(0), chosen.window, counts=chosen.counts)

    monkeypatch.setattr(branch, "_chosen", beside)
    code, out, err = check(*SMALL)
    assert (code, err.count("\n")) == (2, 1)
    assert re.match(
        r"error: task=mmbench_mini, row \d+: random at ratio 0\.5 gives logits", err
    ) or ("full gives logits" in err)
    assert "ok" not in out.splitlines()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("ratios=[1.5]",), "ratios"),
        (("methods.restkv.nothing=1",), "There is no setting methods.restkv.nothing"),
        (("model.pretrained=/nowhere",), "/nowhere"),
        (("task=nothing",), "task=nothing is not there"),
        (("-m", "seed=0,1"), "takes one value of each setting: leave -m out"),
        (("run.dir=/dev/null/results",), "/dev/null is no folder that can be written"),
    ],
)
def test_bad_settings_are_one_sentence_before_anything_loads(
    check, monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...], said: str
) -> None:
    def never(*given: object) -> None:
        raise AssertionError

    monkeypatch.setattr(loading, "load", never)
    monkeypatch.setattr(collect, "load_engine", never)
    code, out, err = check(*typed)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert said in err


def test_a_prompt_that_does_not_fit_is_named_by_its_row(check) -> None:
    code, _, err = check(*SMALL, "model.max_length=60")
    assert (code, err.count("\n")) == (2, 1)
    assert re.match(
        r"error: task=mmbench_mini, row \d+: a prompt of 1\d\d tokens does not fit", err
    )


@pytest.mark.parametrize("count", [1, 2, 49, 50, 51, 1080])
def test_rows_are_spread_over_the_task(count: int) -> None:
    found = trial.spread(count)
    assert found == sorted(set(found))
    assert (found[0], found[-1], len(found)) == (0, count - 1, min(count, trial.SAMPLE))


def test_the_rows_that_are_tried() -> None:
    rows = [trial.Row(i, tokens, 0) for i, tokens in enumerate([90, 10, 30, 40])]
    assert trial.two(rows) == (rows[3], rows[0])
    assert trial.two(rows[:1]) == (rows[0], rows[0])
    even = [trial.Row(0, 7, 0), trial.Row(1, 7, 0)]
    assert {row.position for row in trial.two(even)} == {0, 1}


def test_numbers_as_people_read_them() -> None:
    assert [lines.duration(s) for s in (0.123, 45, 89, 90, 5300, 5400, 360_000)] == [
        "0.12 s", "45 s", "89 s", "2 min", "88 min", "1 h 30 min", "100 h 00 min"
    ]  # fmt: skip
    assert [lines.hours(s) for s in (36, 5400, 3.6e6)] == ["0.01", "1.5", "1,000"]
    assert [lines.size(n) for n in (1e5, 16.6e9)] == ["0.1 MB", "16.6 GB"]
    assert lines.named(Cell("a", "snapkv", budget=1024)) == "a at 1,024 tokens"
