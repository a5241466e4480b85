"""How what is kept is stored: settings, labels, cells and their keys."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.engine import Branch
from harness.errors import UserError
from harness.run import sweep
from harness.run.validate import Job
from harness.scoring.bridge import Bridge
from harness.scoring.single import single_cell
from harness.settings import caches
from harness.settings.caches import Quantized
from harness.settings.grid import Cell, cell_key
from tests.run.conftest import Program
from tests.run.fakes import FakeEngine

USUAL = {"cache": "quantized", "cache_bits": 4, "cache_group": 32, "cache_residual": 32}


@pytest.fixture
def compose(
    call: Program, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Job]:
    """The validated job of a command line."""

    def job(*typed: str) -> Job:
        found: list[Job] = []
        monkeypatch.setattr(sweep, "run", lambda config: found.append(sweep.validate(config)))
        names = {one.split("=")[0] for one in typed}
        assert call(*[o for o in overrides if o.split("=")[0] not in names], *typed) == 0
        return found[0]

    return job


def stored(job: Job) -> dict[str, dict[str, object]]:
    """What each label says of its cache."""
    return {
        one.label: {name: value for name, value in one.params if name in USUAL}
        for one in job.variants
    }


def test_labels_and_the_sweep_say_how_entries_are_stored(compose: Callable[..., Job]) -> None:
    chosen = "method=[full,full_quantized,snapkv,snapkv_quantized]"
    usual = {"full": {}, "full_quantized": USUAL, "snapkv": {}, "snapkv_quantized": USUAL}
    assert stored(compose(chosen)) == usual
    two = {**USUAL, "cache_bits": 2}
    job = compose(chosen, "cache_bits=2")
    assert stored(job) == usual | {"full_quantized": two, "snapkv_quantized": two}
    assert job.told == []
    own = "+methods.restkv.cache_bits=8"
    job = compose("method=[full,snapkv,restkv]", "cache=quantized", "cache_residual=0", own)
    none = {**USUAL, "cache_residual": 0}
    assert stored(job) == {"full": {}, "snapkv": none, "restkv": {**none, "cache_bits": 8}}
    assert job.told == ["cache=quantized does not apply to full."]
    grown = compose("method=[h2o]", "cache=quantized", "decode=grow")
    assert stored(grown) == {"h2o": USUAL}
    again = dict(grown.config.methods["h2o"])  # as config.yaml holds it
    assert {name: again[name] for name in USUAL} == USUAL


def test_the_full_cache_in_few_bits_is_one_cell(compose: Callable[..., Job]) -> None:
    job = compose("method=[full_quantized,snapkv_quantized,snapkv]", "ratios=[0.5,0.9]")
    cells = [(one.label, one.ratio, one.evicts) for one in job.cells(blank=False)]
    assert cells == [
        ("full", None, False),
        ("full_quantized", 0.0, True),
        *((label, ratio, True) for label in ("snapkv_quantized", "snapkv") for ratio in (0.5, 0.9)),
    ]
    assert len({cell_key(one, {}) for one in job.cells(blank=False)}) == 6


def test_keys_of_earlier_answers_hold_and_every_part_of_a_cache_changes_one(
    compose: Callable[..., Job],
) -> None:
    def key(*typed: str) -> str:
        (cell,) = (one for one in compose("method=[snapkv]", *typed).cells(False) if one.evicts)
        return cell_key(cell, {})

    params = {"adaptive_floor": 0.2, "boundary_share": 0.1, "budget": "uniform", "group": "mean"}
    params |= {"kernel": 5, "pool": "avg", "protect": "none", "pyramid_beta": 20}
    params |= {"value_norm": False, "window": 32, "window_anchor": "end"}
    before = Cell("snapkv", "snapkv", tuple(sorted(params.items())), ratio=0.9)
    assert key() == key("cache=full_precision") == cell_key(before, {})
    parts = ([], ["cache_bits=8"], ["cache_group=16"], ["cache_residual=0"])
    assert len({key(), *(key("cache=quantized", *part) for part in parts)}) == 5


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["cache=quantised"], "cache=quantised is not known: use one of full_precision, quantized"),
        (["cache=quantized", "cache_bits=3"], "cache_bits=3 is not allowed; give 8, 4 or 2."),
        (["cache=quantized", "cache_group=0"], "cache_group=0 is not allowed; give a whole number"),
        (["cache=quantized", "cache_residual=-1"], "cache_residual=-1 is not allowed"),
        (["cache_bits=2"], "cache_bits=2 applies to none of the chosen methods"),
        (
            ["+methods.snapkv.cache_bits=2"],
            "cache_bits=2 does nothing with cache=full_precision; give cache=quantized or pq_keys",
        ),
        (["method=[h2o]", "cache=quantized"], "methods.h2o: cache=quantized stores groups of"),
        (["method=[h2o]", "cache=pq_keys"], "methods.h2o: cache=pq_keys stores groups of entries"),
        (["cache=pq_keys", "cache_bits=9"], "cache_bits=9 is not allowed; give a whole number"),
        (["cache=host_values", "cache_mass=0"], "cache_mass=0.0 is not a share of attention"),
        (["cache=host_values", "cache_parts=4"], "cache_parts=4 applies to none of the chosen"),
        (
            ["model.pretrained=${embedded:tiny_vlm}", "cache=pq_keys", "cache_parts=5"],
            "keys of 32 numbers into equal parts; give one of 1, 2, ",
        ),
        (["cache_mass=0.9"], "full precision: give cache=pq_keys or host_values as well, or leave"),
        (["method=[snapkv_quantized]", "cache=pq_keys"], "say themselves how they store entries"),
        (["method=[snapkv_quantized]", "cache=full_precision"], "cache=full_precision applies to"),
        (["method=[snapkv_quantized]", "cache_mass=0.9"], "whose caches have no such setting"),
        (["method=[full]", "cache=pq_keys"], "choose a method other than full, or leave it out."),
        (
            ["+methods.snapkv.cache=host_values", "+methods.snapkv.cache_group=8"],
            "cache_group=8 does nothing with cache=host_values; give cache=quantized",
        ),
        (
            ["method=[streaming_llm]", "positions=cache", "decode=grow", "cache=host_values"],
            "positions=cache counts all of them; give positions=original",
        ),
        (["method=[full]", "+methods.full.cache=quantized"], "so it stays in full precision"),
        (["method=[full]", "cache=quantized"], "cache=quantized applies to none of the chosen"),
    ],
)
def test_what_cannot_be_stored_is_refused_in_one_sentence(
    call: Program, overrides: list[str], capsys: pytest.CaptureFixture[str], typed, told
) -> None:
    usual = [one for one in overrides if not one.startswith("method=")]
    methods = [] if typed[0].startswith("method=") else ["method=[snapkv]"]
    assert call(*usual, *methods, *typed) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_cells_that_store_what_they_keep_otherwise_share_a_policy() -> None:
    bridge = Bridge.__new__(Bridge)
    bridge._policies = {}
    few = (*sorted(Quantized(2, 16, 0).params.items()),)
    window = (("window", 16),)
    plain = bridge._branch(Cell("a", "snapkv", window, ratio=0.5))
    packed = bridge._branch(Cell("b", "snapkv", (*few, *window), ratio=0.5))
    assert packed.policy is plain.policy
    assert (plain.cache, packed.cache) == (None, Quantized(2, 16, 0))
    assert bridge._branch(Cell("c", "full", few, ratio=0.0)) == Branch(cache=Quantized(2, 16, 0))
    assert bridge._branch(Cell("full", "full")) == Branch()


def test_each_kind_of_cache_takes_the_settings_that_it_has(compose: Callable[..., Job]) -> None:
    chosen = "method=[full_quantized,full_pq_keys,full_host_values,snapkv]"
    wide = ("cache=pq_keys", "cache_residual=8", "cache_mass=0.5", "cache_group=16")
    params = {one.label: dict(one.params) for one in compose(chosen, *wide).variants}
    coded = {"cache": "pq_keys", "cache_bits": 6, "cache_parts": 16, "cache_mass": 0.5}
    few = {**USUAL, "cache_group": 16, "cache_residual": 8}
    away = {"cache": "host_values", "cache_mass": 0.5, "cache_residual": 8}
    assert {name: params[name] for name in params if name != "snapkv"} == {
        "full_quantized": few,
        "full_pq_keys": {**coded, "cache_residual": 8},
        "full_host_values": away,
    }
    assert {**coded, "cache_residual": 8}.items() <= params["snapkv"].items()
    cell = single_cell("snapkv", 0.5, None, {"cache": "host_values", "cache_mass": 1})
    assert dict(cell.params)["cache_mass"] == 1.0


def test_what_a_label_says_of_its_cache_stays(compose: Callable[..., Job]) -> None:
    """As the labels of an experiment do, though what they say is usual."""
    few = ("+methods.snapkv.cache=quantized", "+methods.snapkv.cache_bits=4")
    plain = "+methods.restkv.cache=full_precision"
    job = compose("method=[snapkv,restkv,tova]", *few, plain, "cache=quantized", "cache_bits=2",
                  "decode=grow")  # fmt: skip
    found = {one.label: dict(one.params).get("cache_bits") for one in job.variants}
    assert found == {"snapkv": 4, "restkv": None, "tova": 2}
    own = {"tova": job.config.methods["tova"]}  # as a run finds its settings, all spelled out
    assert caches.spread(own, {"cache": "quantized", "cache_bits": 2}) == own


def test_reports_tell_what_lies_on_the_host(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    """Beside cells of which nothing does."""
    usual = [one for one in overrides if not one.startswith("method=")]
    assert call(*usual, "method=[full_pq_keys,full_host_values]") == 0
    assert engine.calls
    cells = pd.read_parquet(tmp_path / "run" / "cells.parquet").set_index("method")
    assert cells.loc["full_host_values", ["host_bytes", "fetched_bytes"]].tolist() == [400, 100]
    assert cells.loc["full_pq_keys", ["host_bytes", "fetched_bytes"]].isna().all()
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    own = samples[samples["method"] == "full_host_values"]
    assert set(own["fetched_bytes"]) == {300}
    assert samples.loc[samples["method"] == "full", "passes"].isna().all()
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert "| host KiB | fetched KiB |" in summary
    assert "| 0.4 | 0.1 |" in summary


def test_lmms_eval_takes_the_same_names() -> None:
    cell = single_cell("snapkv", 0.5, None, {"cache": "quantized", "cache_bits": 2})
    assert {**USUAL, "cache_bits": 2}.items() <= dict(cell.params).items()
    whole = single_cell("full", None, None, {"cache": "quantized"})
    assert (whole.ratio, dict(whole.params), whole.evicts) == (0.0, USUAL, True)
    assert single_cell("full", None, None, {}) == Cell("full", "full")
    with pytest.raises(UserError, match="cache_bits=3 is not allowed"):
        single_cell("snapkv", 0.5, None, {"cache": "quantized", "cache_bits": 3})
