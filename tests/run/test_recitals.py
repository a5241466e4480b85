"""Contexts that are too long to be repeated are refused before a model is loaded."""

from __future__ import annotations

import pytest

from harness.errors import UserError
from harness.models import tokenizer
from harness.run import sweep
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
