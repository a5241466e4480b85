"""The benchmark of decoding under a budget measures what it says."""

import pytest

from harness.embedded import TINY_VLM
from harness.engine import Engine, Protocol
from harness.models import loading
from scripts import bench_decoding as bench
from scripts.bench_branching import prompts


@pytest.fixture(scope="module")
def engine():
    loaded = loading.load(str(TINY_VLM), device="cpu")
    return bench.free_running(Engine(loaded, Protocol("paper")))


@pytest.fixture(scope="module")
def item(engine):
    return prompts(engine.loaded, 1)[0]


def test_holding_methods_hold_and_the_other_grows(engine, item):
    found = bench.sizes(engine, item, 40, 20)
    assert found.pop("snapkv") == [41 + step for step in range(20)]
    assert set(found) == set(bench.HOLDING)
    for name, steps in found.items():
        assert len(steps) == 20
        assert max(steps) <= 40
        assert min(steps) == 40 or name == "lacache"


def test_budget_rules_store_the_same_bytes(engine, item):
    rows = bench.stored(engine, item, 40)
    assert {row["rule"] for row in rows} == {"uniform", "pyramid", "adaptive"}
    assert len({row["cache_bytes"] for row in rows}) == 1
    for row in rows:
        assert row["kept_tokens"] == pytest.approx(40)
        assert row["cache_bytes"] < row["tile_bytes"] < 2 * row["cache_bytes"]


def test_both_modes_are_timed(engine, item):
    found = bench.step_times(engine, item, 4, 1)
    assert set(found) == {*bench.HOLDING, "all"}
    assert all(row["hold"] > 0 and row["grow"] > 0 and row["ratio"] > 0 for row in found.values())
