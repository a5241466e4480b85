"""Contexts that are too long to be repeated are refused before a model is loaded."""

from __future__ import annotations

import re

import pytest

from harness.errors import UserError
from harness.models import tokenizer
from harness.run import collect, sweep
from harness.run.validate import validate
from scripts.bench_workers import settings

TASKS = {"ruler_mini": "niah_single", "longbench_mini": "key_value"}  # the second may be cut


def benchmarks(folder, task: str, *typed: str):
    one = [f"task={task}", f"tasks.{task}.lmms_task={task}_{TASKS[task]}"]
    given = [*one, "limit=null", f"run.dir={folder}", *typed]
    job = validate(settings(given))
    job.folder.mkdir(parents=True, exist_ok=True)
    return sweep.benchmarks(job, job.folder / "log")


@pytest.mark.parametrize(
    ("task", "typed", "limit", "rows"),
    [
        ("ruler_mini", ["method=[kvzip]"], 2048, 0),
        ("ruler_mini", ["method=[snapkv,chunkkv]"], 1100, 0),  # nothing is repeated
        ("ruler_mini", ["method=[kvzip]"], 1100, 64),  # those of 768 and of 1,024 tokens
        ("ruler_mini", ["method=[kvzip]", "methods.kvzip.chunk=16"], 1100, 0),
        ("ruler_mini", ["method=[kvzip]", "model.max_prompt=400"], 1100, 64),
        ("ruler_mini", ["method=[kvzip_global,snapkv]", "cache=quantized"], 600, 96),
        ("longbench_mini", ["method=[kvzip]"], 1100, 20),
        ("longbench_mini", ["method=[kvzip]", "model.max_prompt=400"], 1100, 0),
    ],
)
def test_a_run_says_so_of_all_prompts_at_once(tmp_path, monkeypatch, task, typed, limit, rows):
    monkeypatch.setattr(tokenizer, "context", lambda *given: limit)
    if not rows:
        (one,) = benchmarks(tmp_path, task, *typed)
        assert len(one.benchmark.rows) == (160 if task == "ruler_mini" else 40)
        return
    with pytest.raises(UserError, match=rf" {rows} of 1?[46]0 prompts of task=\w+ are too") as told:
        benchmarks(tmp_path, task, *typed)
    assert "has the model repeat the context" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_row_fits_into_the_positions_that_it_is_said_to_need(tmp_path, monkeypatch):
    """The first of those of 768 and of 1,024 tokens, at its need and at one position less."""

    def refused(limit: int) -> dict[str, int]:
        monkeypatch.setattr(tokenizer, "context", lambda *given: limit)
        with pytest.raises(UserError) as told:
            benchmarks(tmp_path, "ruler_mini", "method=[kvzip]")
        said = r"and (?P<rows>\d+) of .* row (?P<row>\d+) needs at least (?P<need>[\d,]+) "
        found = re.search(said, str(told.value))
        assert found is not None
        return {name: int(each.replace(",", "")) for name, each in found.groupdict().items()}

    first = refused(1100)
    assert refused(first["need"] - 1)["row"] == first["row"]
    assert refused(first["need"])["row"] != first["row"]


def test_a_check_measures_prompts_for_it(tmp_path, monkeypatch):
    """With its template, which the count of a text leaves out."""
    (one,) = benchmarks(tmp_path, "ruler_mini", "method=[kvzip,snapkv]", "ratios=[0.5]")
    config = settings(["task=ruler_mini", "method=[kvzip]"])
    bridge = collect.load_engine(config, tmp_path / "log", one.context)
    benchmark, cells = one.benchmark, [*one.cells.values()]
    asked = {"generation": benchmark.generation, "texts": benchmark.texts(159)}
    tokens, cut = bridge.measure(benchmark.messages(159), cells=cells, **asked)
    assert cut == 0
    monkeypatch.setattr(bridge.loaded.model, "forward", None)
    text = bridge.loaded.model.config.get_text_config()
    monkeypatch.setattr(text, "max_position_embeddings", 3 * tokens // 2)
    with pytest.raises(UserError, match=r"kvzip has the model repeat .* give a smaller chunk"):
        bridge.measure(benchmark.messages(159), cells=cells, **asked)
    others = [cell for cell in cells if cell.label != "kvzip"]
    assert bridge.measure(benchmark.messages(159), cells=others, **asked) == (tokens, 0)
