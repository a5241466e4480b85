"""Generated data sets in the cache: drawn once, whole or not at all, named by what decides them."""

import stat
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from omegaconf import OmegaConf

from harness.errors import UserError
from harness.scoring import catalog, generators
from harness.settings.config import CONF
from tests.scoring import generated_data
from tests.scoring.generated_data import OPTIONS, prepare, tokenizer
from tests.scoring.lmms_tasks import build, results

pytestmark = pytest.mark.usefixtures("cache")


class Counted:
    """A small generator that counts how often it draws and may fail midway."""

    version = 1
    features = generators.Ruler.features
    advice = ""
    defaults: Mapping[str, Any] = {"samples": 5}

    def __init__(self) -> None:
        self.drawn, self.fails = 0, False

    def needs(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        return ()

    def total(self, options: Mapping[str, Any]) -> int:
        return int(options["samples"])

    def rows(
        self, options: Mapping[str, Any], tokenizer: Any, seed: int
    ) -> Iterator[dict[str, Any]]:
        self.drawn += 1
        for index in range(options["samples"]):
            time.sleep(0.02)
            if self.fails and index == 3:
                raise KeyboardInterrupt
            text = {"input": f"{seed}/{index}", "context_end": 1, "answer_prefix": ""}
            yield {"index": index, **text, "outputs": ["a"], "length": 2, "max_length": 3}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    made = Counted()
    monkeypatch.setitem(generators.GENERATORS, "counted", made)
    monkeypatch.setattr(generators, "ROWS", 2)
    return made


def test_a_folder_that_datasets_loads(cache: Path, tmp_path: Path) -> None:
    folder = prepare()
    assert folder.parent == cache / "ruler"
    assert folder.name.startswith("ruler_niah_single_1_512_seed42_ffffffffffff_")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "hf"))
    assert list(loaded) == ["test"]
    assert set(loaded["test"].column_names) == set(generators.Ruler.features)
    rows = list(generators.Ruler().rows(OPTIONS, tokenizer("bpe"), 42))
    assert loaded["test"].to_list() == rows
    assert len(rows) == 3


def test_drawn_once(counted: Counted) -> None:
    task = {"task": "a", "length": 9}
    first = generators.prepare("counted", task, None, "f", 1, progress=False)
    before = (first / "data" / "test-00000-of-00001.parquet").stat().st_mtime_ns
    assert generators.prepare("counted", dict(task), None, "f", 1, progress=False) == first
    assert counted.drawn == 1
    assert (first / "data" / "test-00000-of-00001.parquet").stat().st_mtime_ns == before
    others = [
        generators.prepare("counted", {**task, "length": 8}, None, "f", 1, progress=False),
        generators.prepare("counted", {**task, "task": "b"}, None, "f", 1, progress=False),
        generators.prepare("counted", {**task, "samples": 4}, None, "f", 1, progress=False),
        generators.prepare("counted", task, None, "g", 1, progress=False),
        generators.prepare("counted", task, None, "f", 2, progress=False),
    ]
    counted.version = 2
    others.append(generators.prepare("counted", task, None, "f", 1, progress=False))
    others.append(generators.prepare("counted", task, None, "f" * 12 + "a", 1, progress=False))
    others.append(generators.prepare("counted", task, None, "f" * 12 + "b", 1, progress=False))
    assert len({first, *others}) == 9
    assert counted.drawn == 9


def test_a_seed_among_the_options_goes_first(counted: Counted) -> None:
    task = {"task": "a", "length": 9}
    folder = generators.prepare("counted", {**task, "seed": 5}, None, "f", 1, progress=False)
    assert folder == generators.prepare("counted", task, None, "f", 5, progress=False)


def test_an_interruption_leaves_nothing(counted: Counted, cache: Path) -> None:
    counted.fails = True
    with pytest.raises(KeyboardInterrupt):
        generators.prepare("counted", {"task": "a", "length": 9}, None, "f", 1, progress=False)
    assert [path for path in cache.rglob("*") if path.suffix != ".lock"] == [cache / "counted"]
    counted.fails = False
    folder = generators.prepare("counted", {"task": "a", "length": 9}, None, "f", 1, progress=False)
    assert load_dataset(str(folder), cache_dir=str(cache / "hf"))["test"].num_rows == 5


def test_two_at_a_time_draw_once(counted: Counted) -> None:
    task = {"task": "a", "length": 9}
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(generators.prepare, "counted", task, None, "f", 1, False) for _ in range(4)
        ]
        assert len({job.result() for job in jobs}) == 1
    assert counted.drawn == 1


def test_progress_goes_to_standard_error(
    counted: Counted, capsys: pytest.CaptureFixture[str]
) -> None:
    generators.prepare("counted", {"task": "a", "length": 9}, None, "f", 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "5/5" in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lenght": 4}, "data.lenght is not an option of the generator ruler: it takes lengths, "),
        ({"samples": 0}, "data.samples=0 is not a count"),
        ({"length": "4k"}, "data.length=4k is not a count"),
        ({"task": "ruler_x"}, "task=ruler_x is not one of RULER"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(**options)


def test_an_unknown_generator_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.generator=x is not known: use one of ruler"):
        generators.prepare("x", OPTIONS, None, "f", 1)
    with pytest.raises(UserError, match=r"data\.generator=x"):
        generators.needs_hub({**OPTIONS, "generator": "x"})


@pytest.mark.parametrize("name", [f"ruler_{task}" for task in generators.Ruler().tasks])
def test_tasks_of_lmms_eval_score_their_data(name: str, tmp_path: Path) -> None:
    given = generated_data.sources(tmp_path / "sources")
    folder = prepare(task=name, length=2048, sources=given)
    task = build(name, folder)
    rows = list(task.eval_docs)
    assert len(rows) == 3
    right = [f"They are {', '.join(row['outputs'])}." for row in rows]
    part = [row["outputs"][0] for row in rows]
    assert [r["string_match"] for r in results(task, right)] == [1.0] * 3
    assert [r["string_match"] for r in results(task, ["none"] * 3)] == [0.0] * 3
    share = 1.0 if "qa" in name else 1 / len(rows[0]["outputs"])
    assert [r["string_match"] for r in results(task, part)] == [pytest.approx(share)] * 3
    user, assistant = task.doc_to_messages(rows[0])
    assert user["content"][0]["context"] is True
    text = "".join(part["text"] for part in user["content"])
    assert text == rows[0]["input"]
    assert assistant["content"] == rows[0]["answer_prefix"]
    needed = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}[name.split("_")[1]]
    asked = task.config.generation_kwargs
    assert (asked["max_new_tokens"], asked["until"], asked["do_sample"]) == (needed, [], False)
    assert rows[0][task.config.metadata["category"]] == 2048
    assert list(task.aggregation()) == ["string_match"]


@pytest.mark.parametrize("label", ["ruler", "ruler_offline", "needle", "visual_needle"])
def test_settings_of_a_run_fit_the_generator(label: str) -> None:
    """Every option of the conf file is one of the generator's, every task of the group is there."""
    task = OmegaConf.to_container(OmegaConf.load(CONF / "task" / f"{label}.yaml"))
    assert (CONF / "task" / f"{label}.yaml").read_text().startswith(f"# @package tasks.{label}\n#")
    data, members = task["data"], catalog.members(task["lmms_task"])
    assert set(data) <= {*generators.GENERATORS[data["generator"]].defaults, *COMMON_OPTIONS}
    needed = {generators.needs_hub({**data, "task": name, "length": 4096}) for name in members}
    if label == "ruler":
        assert members == [f"ruler_{name}" for name in generators.Ruler.tasks]
        assert (data["samples"], data["seed"], data["lengths"]) == (500, 42, [4096])
    if label == "ruler_offline":
        every = catalog.members("ruler")
        options = {"generator": "ruler", "length": 4096}
        free = [n for n in every if generators.needs_hub({**options, "task": n}) is None]
        assert members == free
    if label in ("ruler_offline", "visual_needle"):
        assert needed == {None}


COMMON_OPTIONS = ("generator", "lengths", "seed", "sources")
