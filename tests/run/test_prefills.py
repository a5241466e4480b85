"""Dense and sparse prefill in one run: the cells of each, what is refused, and what is told."""

import sqlite3
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from harness.errors import UserError
from harness.records import repair, schema
from harness.records.store import Store
from harness.settings.grid import Prefill, Variant
from harness.settings.prefills import built, check_rows, prefills
from tests.run.conftest import Program, table
from tests.run.fakes import FakeEngine

TABLES = ("cells", "comparisons", "verdicts")
USUAL = {"last": 128, "gamma": 0.9, "tau": 0.1, "min_budget": 512}


def test_a_run_of_both_is_a_dense_run_and_a_sparse_one(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    both = [*overrides[:-3], "run.name=both", "prefill=[dense,flexprefill]", *overrides[-2:]]
    assert call(*both, "prefills.flexprefill.min_budget=128") == 0
    assert {cell.under for cells in engine.calls for cell in cells} == {
        "replay",
        "replay+flexprefill",
    }
    assert all(len({cell.under for cell in cells}) == 1 for cells in engine.calls)
    computed = len(engine.calls)
    assert call(*overrides) == 0
    assert len(engine.calls) == computed  # the dense answers are in the store
    cells = table(tmp_path / "both", "cells")
    for name in TABLES:
        part = table(tmp_path / "both", name)
        part = part[part["protocol"] == "replay"].reset_index(drop=True)
        assert len(part)
        assert_frame_equal(part, table(tmp_path / "run", name))
    sparse = cells[cells["protocol"] == "replay+flexprefill"]
    assert set(sparse["prefill"]) == {"flexprefill"}
    assert sparse.loc[sparse["control"] == "none", "computed_share"].eq(0.375).all()
    assert cells.loc[cells["prefill"] == "dense", "computed_share"].isna().all()
    timed = pd.read_parquet(tmp_path / "both" / "cells.parquet")
    full = timed[timed["method"].eq("full") & timed["control"].eq("none")]
    assert (full["search_s"] / full["prefill_s"]).tolist()[1] == pytest.approx(0.25)
    answer = (tmp_path / "both" / "answer.md").read_text()
    assert "(replay): scores in % by how the prompt is read" in answer
    assert "| Method | Evicted | dense | flexprefill |" in answer
    assert "| full cache |" in answer
    said = "flexprefill computes 37.5 % of the causal blocks, which it chooses in 25.0 %"
    assert said in answer
    assert "| Layer | flexprefill |" in answer
    assert "| 1 | 25.0 |" in answer
    assert "Read by flexprefill, evicted after the question is read (replay)" in answer
    config = (tmp_path / "both" / "config.yaml").read_text()
    assert "min_budget: 128" in config
    summary = (tmp_path / "both" / "summary.md").read_text()
    assert "flexprefill (last=128, gamma=0.9, tau=0.1, min_budget=128)" in summary


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["method=[h2o,restkv]"], "methods.h2o needs the attention of all queries, which"),
        (["method=[post_vision]"], "methods.post_vision needs the attention of all queries"),
        (["method=[finch]"], "give methods.finch.window, or prefill=dense"),
        (["methods.restkv.window=256"], "give prefills.flexprefill.last=256"),
        (["prefills.flexprefill.gamma=7"], "prefills.flexprefill: flexprefill: gamma=7 is not"),
        (["prefill=[]"], "prefill=[] reads no prompt"),
        (["prefill=sparse"], "prefill=sparse is not there: choose from a_shape, dense, flex"),
        (
            ["prefills.flexprefill.stride=8"],
            "flexprefill takes last, gamma, tau, min_budget, and must be",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_model_loads(
    call: Program,
    engine: FakeEngine,
    overrides: list[str],
    given: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prefill = [] if given[0].startswith("prefill=") else ["prefill=[dense,flexprefill]"]
    method = (
        []
        if not given[0].startswith("method=")
        else [text for text in overrides if text.startswith("method=")]
    )
    kept = [text for text in overrides if text not in method]
    assert call(*kept, *prefill, *given) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not engine.calls


def test_settings_become_patterns_with_every_parameter() -> None:
    chosen = {"dense": {"pattern": "dense"}, "mine": {"pattern": "flexprefill", "tau": 0.0}}
    found = prefills(chosen)
    wide = {"pattern": "flexprefill", **USUAL, "tau": 0.0}
    assert found == [Prefill(), Prefill("mine", tuple(wide.items()))]
    ready = built({one.label: dict(one.pattern) or {"pattern": one.label} for one in found})
    assert ready["dense"] is None
    assert ready["mine"].params == {**USUAL, "tau": 0.0}
    assert prefills({}) == [Prefill()]  # settings that an earlier version wrote


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"mine": {}}, "prefills.mine does not say which pattern it is"),
        ({"mine": {"pattern": "most"}}, "pattern=most is not a pattern: use one of dense, a_sh"),
        ({"mine": {"pattern": "dense"}}, "would be confused with another"),
        ({"dense": {"pattern": "a_shape"}}, "would be confused with another"),
        ({"a": {"pattern": "a_shape"}, "b": {"pattern": "a_shape"}}, "prefills.a and prefills.b"),
    ],
)
def test_prefills_that_cannot_be_told_apart_or_built_are_refused(chosen, said) -> None:
    with pytest.raises(UserError) as refused:
        prefills(chosen)
    assert said in str(refused.value)


def test_a_store_that_was_made_before_takes_what_came_later(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    Store(path).close()
    db = sqlite3.connect(path, isolation_level=None)
    for one in schema.LATER:
        db.execute(f"DROP TABLE {one.name}")
    db.close()
    assert repair.is_sound(path)
    with Store(path) as store:
        read = {"k": {"search_s": 0.5, "computed": "{}"}}
        fetched = {"host_bytes": 4, "fetched_bytes": 2, "passes": 1}
        store.write(3, {}, prefills=read, fetches={"k": fetched})
    with Store(path) as store:
        assert store.prefills("k") == {3: {"search_s": 0.5, "computed": "{}"}}
        assert store.prefills("other") == store.fetches("other") == {}
        assert store.fetches("k") == {3: fetched}
    assert repair.is_sound(path)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("DROP TABLE kept")
    db.close()
    with pytest.raises(UserError, match="tables are damaged"):
        Store(path)
    assert {table.name for table in schema.LATER} == {"prefills", "fetches"}


def test_fewer_bits_go_with_a_sparse_prefill() -> None:
    sparse = Prefill("flexprefill", (("pattern", "flexprefill"), *USUAL.items()))
    stored = (("cache", "quantized"), ("cache_bits", 2))
    check_rows([sparse], [Variant("snapkv_2bit", "snapkv", stored), Variant("q", "full", stored)])
    with pytest.raises(UserError, match="h2o_2bit needs the attention of all queries"):
        check_rows([sparse], [Variant("h2o_2bit", "h2o", (*stored, ("decode", "grow")))])
