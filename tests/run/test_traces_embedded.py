"""The traces of a real run of the embedded model: what its prompts say, and what was kept of it."""

import json
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from datasets import load_dataset
from transformers import AutoTokenizer

from harness import __main__ as program
from harness.embedded import TINY_VLM
from harness.models.segments import Texts
from harness.scoring.mmbench import MMBench
from harness.scoring.scorers import Scores

POST = "Answer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two questions of each task, a method that gives heads different budgets among others."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = [
        "harness", "limit=2", "task=[mmbench_mini,longbench_mini]", "ratios=[0.9]",
        "method=[snapkv,restkv_adaptive,tova]", f"run.dir={folder}", "run.name=run",
        "wandb.mode=disabled", "protocol=replay",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        assert program.main() == 0
    return folder / "run"


@pytest.fixture(scope="module")
def frames(run: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_parquet(run / f"{name}.parquet") for name in ("prompts", "kept")} | {
        "samples": pd.read_parquet(run / "samples.parquet")
    }


def parts(prompt: pd.Series) -> list[tuple[str, list[str]]]:
    """The tokens of each segment of a shown prompt."""
    left = iter(json.loads(prompt["tokens"]))
    return [(name, [next(left) for _ in range(n)]) for name, n in json.loads(prompt["segments"])]


def test_every_prompt_is_told_apart_completely(frames: dict[str, pd.DataFrame]) -> None:
    full = frames["samples"].query("method == 'full'")
    both = frames["prompts"].merge(full, on=["model", "task", "protocol", "row"], validate="1:1")
    assert len(both) == len(full) == len(frames["prompts"])
    counts = [dict.fromkeys(("image", "unknown"), 0) for _ in range(len(both))]
    for count, prompt in zip(counts, both["segments"], strict=True):
        for name, n in json.loads(prompt):
            count[name] = count.get(name, 0) + n
    assert [sum(count.values()) for count in counts] == both["prompt_tokens"].tolist()
    assert [count["image"] for count in counts] == both["image_tokens"].tolist()
    assert not any(count["unknown"] for count in counts)


def test_mmbench_prompts_hold_what_the_data_set_says(
    frames: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    source = str(TINY_VLM.parent / "mmbench_mini")
    data = load_dataset(source, "en", split="dev", cache_dir=str(tmp_path))
    split = AutoTokenizer.from_pretrained(TINY_VLM).tokenize
    prompts = frames["prompts"].query("task == 'mmbench_mini'")
    shown = prompts[prompts["tokens"].notna()]
    assert len(shown) == 2
    assert len(prompts) > 4  # rotations too
    for _, prompt in shown.iterrows():
        row = data[prompt["row"]]
        assert row["index"] < 1_000_000
        hint = row["hint"] if row["hint"] not in (None, "", "nan") else ""
        lines = [f"{x}. {row[x]}" for x in "ABCD" if row[x] not in (None, "", "nan")]
        assert parts(prompt) == [
            ("template", ["<s>", "USER", ":"]),
            ("image", ["<image>"] * 64),
            ("template", ["\n"]),
            ("question", split(f"{hint} {row['question']}")),
            ("instruction", split("There are several options:\n")),
            ("options", split("\n".join(lines))),
            ("instruction", split(f"\n\n{POST}")),
            ("template", ["ASSISTANT", ":"]),
        ]
        assert json.loads(prompt["images"]) == [[3, 8, 8]]


def test_a_marked_context_is_the_bulk_of_a_long_text(
    frames: dict[str, pd.DataFrame], run: Path
) -> None:
    prompts = frames["prompts"].query("task != 'mmbench_mini'")
    shown = prompts[prompts["tokens"].notna()]
    assert len(shown) == 2 * prompts["task"].nunique() == len(prompts)
    assert prompts["image"].isna().all()
    assert {path.name.split("-")[0] for path in (run / "images").iterdir()} == {"mmbench_mini"}
    questions = 0
    for _, prompt in shown.iterrows():
        found = parts(prompt)
        names = [name for name, _ in found]
        context = [tokens for name, tokens in found if name == "context"]
        assert len(context) == 1
        assert len(context[0]) > 0.5 * sum(len(tokens) for _, tokens in found)
        assert set(names) <= {"template", "context", "question", "instruction"}
        assert "question" not in names[: names.index("context")]
        questions += "question" in names
    assert questions >= 2


def test_shares_are_of_the_tokens_that_were_there(frames: dict[str, pd.DataFrame]) -> None:
    kept, prompts = frames["kept"], frames["prompts"]
    keys = ["model", "task", "protocol", "row"]
    both = kept.merge(frames["samples"], on=[*keys, "cell_key"], validate="1:1")
    assert len(both) == len(kept)
    cells = frames["samples"][["task", "cell_key"]].drop_duplicates()
    assert len(kept) == 2 * len(cells)
    assert (both["shares"].map(sum) - both["kept_tokens"]).abs().max() < 1e-3
    assert both["shares"].map(len).eq(both["evictable_tokens"]).all()
    assert both["shares"].map(len).eq(both["prompt_tokens"] - 1).all()
    placed = both.merge(prompts, on=keys, validate="m:1")
    for _, cell in placed.iterrows():
        names = chain.from_iterable([name] * n for name, n in json.loads(cell["segments"]))
        shares = zip(names, cell["shares"], strict=False)
        image = sum(share for name, share in shares if name == "image")
        assert image == pytest.approx(cell["kept_image"], abs=1e-3)
    whole = kept[kept["method"].isin(["full", "blank_image"])]
    assert {share for shares in whole["shares"] for share in shares} == {1.0}
    spread = kept.loc[kept["method"] == "restkv_adaptive", "shares"]
    assert all(0 < shares.max() <= 1 and len(set(shares)) > 4 for shares in spread)


def test_what_a_benchmark_knows_of_a_question() -> None:
    """By the columns of a row, the settings of a task, and MMBench's own schema."""
    row = {"question": "Why?", "hint": "nan", "A": "x", "B": " y", "C": None, "D": "nan"}
    mmbench = MMBench()
    assert mmbench.texts(None, row) == Texts(("Why?",), ("A. x", "B.  y"))
    hinted = mmbench.texts(None, {**row, "hint": "Look."})
    assert hinted.questions == ("Look. Why?", "Why?")

    def known(row: dict, text: str, around: dict | None = None) -> Texts:
        task = SimpleNamespace(lmms_eval_specific_kwargs=around, doc_to_text=lambda document: text)
        return Scores.texts(SimpleNamespace(), task, row)

    around = {"pre_prompt": "Q: ", "post_prompt": "\nOne word."}
    assert known({"query": "Why?"}, "Q: Why?\nOne word.", around) == Texts(("Why?",))
    assert known({"question": "Why?"}, "Why? Now.") == Texts(("Why?", "Why? Now."))
    assert known({"question": ["a"], "input": "b"}, "b", {"pre_prompt": None}) == Texts(("b", "b"))
