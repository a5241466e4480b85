"""Cells whose numbers are not finite: failed by name wherever a run tells of its cells."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from harness.embedded import TINY_VLM
from harness.engine import NoRoom
from harness.errors import UserError
from harness.records import older
from harness.records.store import Store
from harness.report import build
from harness.scoring.single import EvictBench
from harness.settings.grid import BLANK_IMAGE, Cell
from harness.tracking import groups, shown
from tests.run import old_stores
from tests.run.conftest import Program, store_of
from tests.run.fakes import FakeEngine
from tests.run.test_plugin import FakeBridge

HIT = "shape 4?"  # a question of three rotations
ROWS = 27


def hits(method: str, ratio: float | None = 0.9, control: str = "none") -> Callable:
    """Faults in the rows of one question, of one cell."""

    def count(cell: Cell, text: str) -> int:
        alike = (cell.method, cell.ratio, cell.control) == (method, ratio, control)
        return 2 if alike and HIT in text else 0

    return count


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "run" / f"{name}.parquet")


@pytest.mark.usefixtures("whole_report")
def test_a_failed_cell_is_named_with_its_rows_and_has_no_score(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys
) -> None:
    engine.nonfinite = hits("restkv")
    assert call(*overrides, "ratios=[0.5,0.9]", "analysis.above=0.1") == 0
    samples = read(tmp_path, "samples")
    failed = samples[samples["failed"]]
    cell = samples.query("method == 'restkv' and ratio == 0.9")
    assert len(failed) == cell["question"].str.contains(HIT, regex=False).sum() > 0
    count = len(failed)
    assert failed["nonfinite_tokens"].eq(2).all()
    assert samples.loc[~samples["failed"], "nonfinite_tokens"].eq(0).all()
    assert failed["score"].isna().all()
    assert failed["parsed"].isna().all()
    assert not failed["correct"].any()
    assert not failed["unparsed"].any()
    assert samples.loc[~samples["failed"], "score"].notna().all()
    for text in failed["letter_logits"]:
        found = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
        assert found
        assert set(found.values()) == {None}

    cells = read(tmp_path, "cells").set_index(["method", "ratio"])
    cell, mild = cells.loc["restkv", 0.9], cells.loc["restkv", 0.5]
    assert cells["failed_rows"].sum() == cell["failed_rows"] == count
    lost = ["accuracy", "accuracy_low", "accuracy_high", "circular_accuracy", "flip_rate"]
    assert cell[lost].isna().all()
    assert mild[lost].notna().all()

    compared = read(tmp_path, "comparisons").set_index(["method", "ratio"])
    numbers = ["difference", "difference_low", "bootstrap_low", "lower", "upper", "p_noninferior",
               "lost", "p_mcnemar", "flip_rate", "kl", "kl_low", "retained"]  # fmt: skip
    assert compared.loc[("restkv", 0.9), numbers].isna().all()
    assert compared.loc[("restkv", 0.5), ["difference", "kl", "flip_rate"]].notna().all()
    kinds = read(tmp_path, "abilities").query("method == 'restkv' and ratio == 0.9")
    broken = set(failed["category"]) | set(failed["l2_category"])
    assert set(kinds.loc[kinds["accuracy"].isna(), "ability"]) == broken
    assert kinds["difference"].isna().all()

    verdict = read(tmp_path, "verdicts").set_index("ratio").loc[0.9]
    assert verdict["verdict"] == "cannot tell"
    said = f"restkv failed in {count} of {ROWS} rows"
    assert said in verdict["reason"]
    assert "in float32" in verdict["reason"]
    named = f"restkv at 0.9 ({count} of {ROWS} rows)"
    out = " ".join(capsys.readouterr().out.split())
    assert named in out
    folder = tmp_path / "run"
    for name in ("summary.md", "answer.md", "report.html"):
        assert named in (folder / name).read_text(), name
    assert said in (folder / "answer.md").read_text()
    assert "secret" not in (folder / "summary.md").read_text()
    assert not (folder / "submissions").exists()
    (group,) = groups.groups(build.read(folder))
    assert named in groups.notes(group)
    assert group.cells["failed_rows"].sum() == count
    table = shown.samples(group, questions=ROWS)
    assert set(table.loc[table["failed"], "method"]) == {"restkv"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (hits("full", None, BLANK_IMAGE), "The blank image failed in"),
        (hits("random"), "random failed in"),
    ],
)
def test_no_verdict_where_what_it_rests_on_failed(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, fault, reason: str
) -> None:
    """The stand-in's scores are set so that the rules reach the control."""
    engine.nonfinite = fault
    assert call(*overrides, "analysis.margin=90") == 0
    verdict = read(tmp_path, "verdicts").set_index("ratio").loc[0.9]
    assert verdict["verdict"] == "cannot tell"
    cells = read(tmp_path, "cells")
    failed = cells[cells["failed_rows"] > 0]
    assert len(failed) == 1
    assert failed["accuracy"].isna().all()
    if reason.startswith("The blank"):
        assert verdict["reason"].startswith(reason)
    else:
        assert "random at 0.9 (" in (tmp_path / "run" / "answer.md").read_text()


@pytest.mark.usefixtures("no_report")
def test_a_full_cache_that_is_not_finite_stops_the_run_every_time(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys
) -> None:
    engine.nonfinite = hits("full", None)
    for _ in range(2):
        assert call(*overrides) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert "task=mmbench_mini, row " in told
        assert (
            "not finite (NaN or infinite) in float16: give dtype=bfloat16 or dtype=float32." in told
        )
        assert "Traceback" not in told
    assert not (tmp_path / "run" / build.MANIFEST).exists()
    engine.nonfinite = lambda cell, text: 0
    assert call(*overrides) == 0
    assert not read(tmp_path, "samples")["failed"].any()


@pytest.mark.usefixtures("no_report")
def test_rows_that_do_not_fit_into_memory_fail_by_name_and_the_others_go_on(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    answer = engine.answer

    def scarce(messages, *how):
        if HIT in str(messages):
            raise NoRoom("a prompt of 900 tokens does not fit into memory; use a shorter prompt.")
        return answer(messages, *how)

    monkeypatch.setattr(engine, "answer", scarce)
    assert call(*overrides) == 2
    told = " ".join(capsys.readouterr().err.split())
    said = (
        r"row \d+: a prompt of 900 .* prompt\. 2 more rows failed\. All other answers are stored\."
    )
    assert re.search(said, told)
    with Store(store_of(tmp_path)) as store:
        cells, answers = store.count()
    assert answers == cells * (ROWS - 3)
    monkeypatch.setattr(engine, "answer", answer)
    assert call(*overrides) == 0


def edited(folder: Path, name: str, change: Callable) -> Path:
    """The embedded model with one tensor changed."""
    shutil.copytree(TINY_VLM, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name].float())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def at(place: object, value: float) -> Callable:
    def change(tensor):
        tensor[place] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "change", "more", "advice"),
    [
        ("lm_head.weight", at(200, np.nan), [], "the weights of"),
        ("language_model.model.layers.5.self_attn.v_proj.weight", at((5, 5), np.nan), [],
         "the weights of"),
        ("language_model.model.layers.3.mlp.down_proj.weight", lambda t: 1e5 * t,
         ["dtype=float16"], "in float16: give dtype=bfloat16 or dtype=float32."),
        ("vision_tower.pre_layrnorm.bias", at(3, np.inf), ["dtype=bfloat16"],
         "in bfloat16: give dtype=float32."),
    ],
)  # fmt: skip
def test_weights_that_are_no_numbers_stop_at_the_first_row(
    call: Program, tmp_path: Path, capsys, name: str, change: Callable, more: list[str], advice: str
) -> None:
    folder = edited(tmp_path / "model", name, change)
    told = call(
        f"model.pretrained={folder}", "limit=1", "ratios=[0.9]", "method=[restkv,random]",
        f"run.dir={tmp_path}", "run.name=run", "wandb.mode=disabled", *more,
    )  # fmt: skip
    assert told == 2
    assert advice in " ".join(capsys.readouterr().err.split())
    with Store(store_of(tmp_path)) as store:
        assert store.count() == (0, 0)


def test_the_plugin_has_no_answer_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeBridge):
        loaded = type("Loaded", (), {"dtype": "torch.float16"})

        def answer(self, messages, cells, *how):
            self.nonfinite = lambda cell, text: 1
            return super().answer(messages, cells, *how)

    monkeypatch.setattr("harness.scoring.single.Bridge", Broken)
    for method, ratio in (("restkv", 0.9), ("full", None)):
        model = EvictBench("x", method, ratio=ratio)
        model.task_dict = {"t": {"s": [None]}}
        messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        arguments = (None, lambda _, said=messages: said, {}, 0, "t", "s")
        request = type("Request", (), {"args": arguments})
        with pytest.raises(UserError, match=r"task=t, document 0: .*float16.*dtype=bfloat16"):
            model._answer(request)


@pytest.mark.parametrize(
    ("logits", "failed"),
    [('{"A": NaN}', 1), ('{"A": Infinity}', 1), ('{"A": -Infinity, "B": 1.0}', 0), ("{}", 0)],
)
def test_an_earlier_store_tells_of_faults_by_its_letters(
    tmp_path: Path, logits: str, failed: int
) -> None:
    (tmp_path / "run").mkdir()
    old_stores.write(tmp_path / "run" / older.FILE, 3, logits)
    with Store(tmp_path / "s.sqlite") as store:
        older.absorb(store, tmp_path, "w", print)
        assert store.read("k")[3]["nonfinite_tokens"] == failed
