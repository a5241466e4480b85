"""The examples run from any folder and say what is true; citation and workflow say what is there.

All examples run in forks of one process that has imported the large libraries and this one, each in
a folder of its own: importing them takes longer than everything that the examples do.
"""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import harness
from harness.embedded import MMBENCH_MINI, TINY_VLM
from harness.report import contrasts

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.ipynb")])
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
QUESTION = 8  # the index of the one that the examples ask
RUNNER = """
import json, os, runpy, sys
import pandas, PIL.Image, torch
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor
import methods
from harness.engine import Engine
from harness.embedded import TINY_VLM
from harness.models.loading import load

load(str(TINY_VLM))  # imports what loading a model imports late
codes = {}
for folder, path, *arguments in json.loads(sys.argv[1]):
    if (child := os.fork()):
        codes[folder] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        continue
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    sys.argv = [path, *arguments]
    if path.endswith(".py"):
        runpy.run_path(path, run_name="__main__")
        sys.exit()
    space = {"__name__": "__main__"}
    for cell in json.load(open(path))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
    sys.exit()
print(json.dumps(codes))
"""


@dataclass
class Ended:
    """How an example ended, what it said, and the files that it left in its folder."""

    code: int
    out: str
    err: str
    left: list[str]


@pytest.fixture(scope="module")
def budgets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by budgets with one pair of methods, its figures made up."""
    folder = tmp_path_factory.mktemp("budgets")
    cells = [("full", None, 0.75), ("snapkv", 128, 0.5), ("snapkv", 16, 0.125)]
    table = pd.DataFrame(cells, columns=["method", "budget", "accuracy"])
    table["budget"] = table["budget"].astype("Int64")
    table.assign(task="t", protocol="context", ratio=0.0).to_parquet(folder / "cells.parquet")
    pair = {
        "task": "t",
        "protocol": "context",
        "label": "left",
        "against": "right",
        "budget": 16,
        "effect": "costs",
    }
    found = pd.DataFrame([pair | {"difference": -0.25, "low": -0.5, "high": -0.125}])
    found.reindex(columns=contrasts.COLUMNS).to_parquet(folder / "contrasts.parquet")
    return folder


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, budgets: Path) -> dict[str, Ended]:
    """Every example by its name, and `read_results` of other folders too."""
    top = tmp_path_factory.mktemp("examples")
    reader = str(ROOT / "examples" / "read_results.py")
    calls = {path.name: [str(path)] for path in EXAMPLES}
    calls |= {"budgets": [reader, str(budgets)], "nothing": [reader, "nothing"]}
    for name in calls:
        (top / name).mkdir()
    todo = [[str(top / name), *call] for name, call in calls.items()]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(todo)],
        cwd=top,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    return {
        name: Ended(
            codes[str(top / name)],
            (top / f"{name}.out").read_text(),
            (top / f"{name}.err").read_text(),
            [path.name for path in (top / name).iterdir()],
        )
        for name in calls
    }


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    rows = pq.read_table(MMBENCH_MINI / "en" / "dev-00000-of-00001.parquet").to_pylist()
    return next(row for row in rows if row["index"] == QUESTION)


def after(what: str, text: str) -> str:
    """The word behind `what: `."""
    return re.search(rf"{re.escape(what)}: (\S+)", text)[1]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_runs_from_another_folder_and_leaves_nothing(
    ended: dict[str, Ended], path: Path
) -> None:
    one = ended[path.name]
    assert one.code == 0, one.err
    assert one.out
    assert one.left == []
    assert f"`{path.name}`" in (ROOT / "examples" / "README.md").read_text()


@pytest.mark.parametrize("name", ["evict_generate.py", "branch.py", "tour.ipynb"])
def test_the_full_cache_gives_the_right_answer(
    ended: dict[str, Ended], row: dict[str, Any], name: str
) -> None:
    out = ended[name].out
    assert row["question"] in out
    assert after("right answer", out).rstrip(",") == after("full cache", out) == row["answer"]


def test_generate_and_the_engine_agree_on_what_eviction_does(ended: dict[str, Ended]) -> None:
    header, *lines = ended["branch.py"].out.splitlines()[-8:]
    ratios = header.split()
    cells = {line.split()[0]: dict(zip(ratios, line.split()[1:], strict=True)) for line in lines}
    for method in ("restkv", "streaming_llm"):
        for name in ("evict_generate.py", "tour.ipynb"):
            said = after(f"{method}, 90 % evicted", ended[name].out)
            assert said == cells[method]["0.90"]


def test_the_own_method_keeps_the_shortest_keys(
    ended: dict[str, Ended], row: dict[str, Any]
) -> None:
    """Against the keys that the plain model caches, ranked head by head."""
    # Late: no other test here needs them.
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(TINY_VLM, dtype="float32")
    processor = AutoProcessor.from_pretrained(TINY_VLM)
    picture = Image.open(io.BytesIO(row["image"]["bytes"]))
    content = [{"type": "image", "url": picture}, {"type": "text", "text": row["question"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = inputs["input_ids"][0].tolist()
    length = len(ids) - 1  # all but the last token are in the cache when it is evicted
    kept = length - floor(Fraction(4, 5) * length)
    votes, heads = [0] * length, 0
    for layer in model(**inputs, use_cache=True).past_key_values.layers:
        for head in layer.keys[0, :, :length].norm(dim=-1).tolist():
            heads += 1
            for place in sorted(range(length), key=head.__getitem__)[:kept]:
                votes[place] += 1
    most = [place for place in range(length) if votes[place] > heads / 2]
    text = [ids[place] for place in most if ids[place] != model.config.image_token_id]
    words = [processor.decode([token]) for token in text]
    out = ended["own_method.py"].out
    assert f"Each head keeps {kept} tokens" in out
    assert f"small_keys: most heads keep {len(most)} tokens, of the text {words}\n" in out


def test_the_published_scores_are_read(ended: dict[str, Ended]) -> None:
    cells = pq.read_table(ROOT / "results" / "embedded" / "cells.parquet").to_pylist()
    out = ended["read_results.py"].out
    parts = re.split(r"^mmbench_mini, protocol (\w+): ", out, flags=re.MULTILINE)
    for protocol, told in zip(parts[1::2], parts[2::2], strict=True):
        own = [one for one in cells if one["protocol"] == protocol]
        for method in ("snapkv", "random"):
            wanted = {one["ratio"]: one["accuracy"] for one in own if one["method"] == method}
            printed = re.search(rf"^{method} +([\d. ]+)$", told, re.MULTILINE)[1].split()
            assert printed == [f"{100 * wanted[ratio]:.1f}" for ratio in sorted(wanted)]
        (full,) = [one["accuracy"] for one in own if one["method"] == "full"]
        assert f"\nfull {100 * full:.1f}\n" in told
    assert parts[1::2] == ["replay", "context"]
    verdicts = pq.read_table(ROOT / "results" / "embedded" / "verdicts.parquet").to_pylist()
    told = out.partition("verdicts")[2]
    assert all(re.search(rf" {one['ratio']:g}0* .* {one['verdict']}\b", told) for one in verdicts)


def test_budgets_and_pairs_are_read(ended: dict[str, Ended]) -> None:
    out = ended["budgets"].out
    assert "t, protocol context: score in % by budget\nfull 75.0\n" in out
    assert re.search(r"^snapkv +50\.0 +12\.5", out, re.MULTILINE)
    assert re.search(r"context +left +right +16 +-25\.0 +-50\.0 +-12\.5 +costs", out)
    assert "verdicts" not in out


def test_a_folder_without_results_is_one_sentence(ended: dict[str, Ended]) -> None:
    said = "error: nothing holds no cells.parquet: name the folder of a finished run.\n"
    assert (ended["nothing"].code, ended["nothing"].err) == (1, said)


def test_the_notebook_is_whole_and_cleared() -> None:
    book = json.loads((ROOT / "examples" / "tour.ipynb").read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"]) == 8
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * 4


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert (cited["title"], cited["version"]) == ("evictbench", harness.__version__)
    assert f"## [{harness.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    license_name = re.search(r'^license = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert cited["license"] == license_name
    (paper,) = cited["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2605.08840"


def test_the_workflow_runs_the_continuous_integration() -> None:
    flow = yaml.load((ROOT / ".github" / "workflows" / "ci.yml").read_text(), yaml.BaseLoader)
    assert set(flow["on"]) == {"push", "pull_request"}
    assert flow["permissions"] == {"contents": "read"}
    (job,) = flow["jobs"].values()
    assert (job["runs-on"], job["timeout-minutes"]) == ("ubuntu-latest", "40")
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    (python,) = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert python["python-version"] == "3.11"
    assert python["cache"] == "pip"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_forms_need(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
    for part in form["body"]:
        assert part["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"]["label"]
        assert ("options" in part["attributes"]) == (part["type"] in ("dropdown", "checkboxes"))
