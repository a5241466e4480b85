"""What decides a verdict is on record before its questions are answered, and a change is told."""

import json
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

from harness.errors import UserError
from harness.records import plan
from harness.records.plan import Asked
from harness.records.store import Store
from harness.settings.config import (
    AnalysisConfig,
    Config,
    ContrastConfig,
    ProtocolConfig,
    TaskConfig,
)
from tests.run.conftest import Program, store_of
from tests.run.fakes import FakeEngine

METHODS = {
    "restkv": {"method": "restkv", "alpha": 0.3},
    "random": {"method": "random", "seed": 0},
    "restkv_neither": {"method": "restkv", "alpha": 0.0},
    "h2o": {"method": "h2o", "recent": None},
}


def config(**changed: object) -> Config:
    names = {field.name for field in fields(AnalysisConfig)}
    analysis = {key: changed.pop(key) for key in list(changed) if key in names}
    settings = {
        "ratios": [0.5, 0.9],
        "tasks": {"mini": TaskConfig("mini")},
        "protocol": ProtocolConfig("replay"),
        **changed,
    }
    return Config(**settings, analysis=AnalysisConfig(**analysis))


def asked(answered: int = 0, context: dict | None = None, **changed: object) -> Asked:
    methods = {**METHODS, **changed}
    used = {name: params for name, params in methods.items() if params}
    settings = {"data": "d", "dtype": "float32", "generation": {"max_new_tokens": 1}}
    settings |= {"weights": "w", **(context or {})}
    questions = {"mini": (324, lambda store: answered)}
    return Asked({"mini": settings}, questions, used, ("restkv", "restkv_neither"))


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "s.sqlite") as opened:
        yield opened


def report(store: Store, folder: Path, about: Asked | None = None, **changed: object):
    """Register a plan and show its results."""
    folder.mkdir(exist_ok=True)
    about = about or asked()
    record = plan.register(store, config(**changed), about, folder)
    (folder / "manifest.json").write_text("{}")
    plan.reported(store, record, config(**changed), about)
    return record


def test_points_become_a_fraction():
    assert plan.plan_of(config(margin=2.5, seed=3)).margin == 0.025
    assert plan.plan_of(config(seed=3)).seed == 3


def test_a_plan_before_the_first_answer_is_on_record(store, tmp_path):
    record = plan.register(store, config(), asked(), tmp_path)
    assert record.stands
    assert record.sentence() == "The plan was put on record before the first answer was computed."
    told = json.loads((tmp_path / plan.FILE).read_text())
    assert told["settings"]["margin"] == 2.0
    assert told["settings"]["settings"]["mini"]["data"] == "d"
    assert told["said"] == record.sentence()


def test_what_was_answered_before_is_a_count_and_no_stain(store, tmp_path):
    record = plan.register(store, config(), asked(answered=20), tmp_path)
    assert record.stands
    assert record.sentence() == (
        "20 of 324 questions had been answered before the plan was put on record."
    )
    # The same command again: what was answered since is the plan's own work.
    again = plan.register(store, config(), asked(answered=300), tmp_path)
    assert again.sentence() == record.sentence()


CHANGES = [
    ({"margin": 3.0}, {}, "margin 2.0 -> 3.0"),
    ({"alpha": 0.1}, {}, "alpha 0.05 -> 0.1"),
    ({"above": 0.7}, {}, "above 0.5 -> 0.7"),
    ({"control": "streaming_llm"}, {}, "control random -> streaming_llm"),
    ({"ratios": [0.9]}, {}, "ratios [0.5, 0.9] -> [0.9]"),
    ({"budgets": [16]}, {}, "budgets [] -> [16]"),
    ({"extraction": "strict"}, {}, "reading.mini lmms_eval -> strict"),
    ({}, {"restkv": {"method": "restkv", "alpha": 0.7}}, "parameters.restkv.alpha 0.3 -> 0.7"),
    ({}, {"random": {"method": "random", "seed": 9}}, "parameters.random.seed 0 -> 9"),
    ({}, {"restkv_neither": {"method": "restkv", "alpha": 0.5}}, "restkv_neither.alpha 0.0 -> 0.5"),
    ({}, {"context": {"dtype": "float16"}}, "settings.mini.dtype float32 -> float16"),
    ({}, {"context": {"data": "e"}}, "settings.mini.data d -> e"),
    ({}, {"context": {"generation": {"max_new_tokens": 9}}}, "max_new_tokens 1 -> 9"),
]


@pytest.mark.parametrize(("changed", "about", "said"), CHANGES)
def test_a_change_after_a_report_is_exploratory(store, tmp_path, changed, about, said):
    report(store, tmp_path / "first")
    record = report(store, tmp_path / "second", asked(**about), **changed)
    assert not record.stands
    assert said in record.sentence()
    assert str(tmp_path / "first") in record.sentence()
    assert plan.register(store, config(), asked(), tmp_path / "first").stands  # its record stays


@pytest.mark.parametrize(("changed", "about", "said"), CHANGES)
def test_a_change_before_any_report_is_none(store, tmp_path, changed, about, said):
    plan.register(store, config(), asked(), tmp_path)
    assert plan.register(store, config(**changed), asked(**about), tmp_path).stands


@pytest.mark.parametrize(
    ("changed", "about"),
    [
        ({"resamples": 500}, {}),
        ({"ratios": [0.9, 0.5]}, {}),
        ({"ratios": [0.9, 0.5, 0.5]}, {}),
        ({"limit": 20}, {}),
        ({"method": "snapkv"}, {}),
        ({"protocol": ProtocolConfig("context")}, {"context": {"protocol": "context"}}),
        ({"tasks": {"mini": TaskConfig("mini"), "other": TaskConfig("other")}}, {}),
        ({}, {"tova": {"method": "tova"}}),
        ({}, {"h2o": None}),
    ],
)
def test_what_is_another_question_or_decides_nothing_is_no_change(store, tmp_path, changed, about):
    report(store, tmp_path / "first")
    assert plan.register(store, config(**changed), asked(**about), tmp_path).stands


def test_a_plan_that_judged_nothing_is_no_report(store, tmp_path):
    report(store, tmp_path / "first", asked(restkv=None))
    assert plan.register(store, config(margin=5.0), asked(), tmp_path).stands


@pytest.mark.parametrize(("changed", "about", "said"), CHANGES)
def test_two_plans_share_no_folder(store, tmp_path, changed, about, said):
    report(store, tmp_path / "run")
    before = (tmp_path / "run" / plan.FILE).read_bytes()
    with pytest.raises(UserError, match="another plan") as refused:
        report(store, tmp_path / "run", asked(**about), **changed)
    assert said.split(" -> ")[0] in str(refused.value)
    assert (tmp_path / "run" / plan.FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("first", "then", "fits"),
    [
        ({"limit": 20}, {}, True),
        ({"limit": 20}, {"limit": 30}, True),
        ({}, {"limit": 20}, False),
        ({"h2o": None}, {}, True),
        ({}, {"h2o": None}, False),
        ({"blank_image": False}, {}, False),
    ],
)
def test_a_folder_may_grow(store, tmp_path, first, then, fits):
    def split(given: dict) -> tuple[dict, Asked]:
        about = {name: value for name, value in given.items() if name in METHODS}
        return {k: v for k, v in given.items() if k not in about}, asked(**about)

    settings, about = split(first)
    report(store, tmp_path / "run", about, **settings)
    settings, about = split(then)
    if fits:
        report(store, tmp_path / "run", about, **settings)
    else:
        with pytest.raises(UserError, match=r"choose another run\.name"):
            report(store, tmp_path / "run", about, **settings)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 3}', '{"settings": {}}'])
def test_a_damaged_plan_file_is_one_sentence(store, tmp_path, content):
    report(store, tmp_path / "run")
    (tmp_path / "run" / plan.FILE).write_text(content)
    with pytest.raises(UserError, match=plan.FILE):
        report(store, tmp_path / "run")


def test_a_run_says_how_its_plan_stands(call: Program, engine: FakeEngine, overrides, tmp_path):
    small = [*overrides, "method=[restkv,random]", "ratios=[0.9]"]
    assert call(*small, "limit=2", "run.name=trial") == 0
    assert call(*small, "limit=3") == 0
    answer = (tmp_path / "run" / "answer.md").read_text()
    assert "2 of 3 questions had been answered before the plan" in answer
    assert "xploratory" not in answer.split("## ")[0].split("###")[0]
    assert call(*small, "limit=3", "analysis.margin=5", "run.name=changed") == 0
    answer = (tmp_path / "changed" / "answer.md").read_text()
    assert "Exploratory" in answer
    assert "margin 2.0 -&gt; 5.0" in answer or "margin 2.0 -> 5.0" in answer
    manifest = json.loads((tmp_path / "changed" / "manifest.json").read_text())
    assert manifest["registered"] is False
    assert len(pd.read_parquet(tmp_path / "changed" / "samples.parquet"))
    with Store(store_of(tmp_path)) as store:
        assert len(store.plans()) == 3


@pytest.mark.parametrize(
    "setting",
    ["margin=0", "margin=100", "alpha=0.5", "alpha=0", "power=1", "above=1", "resamples=10"],
)
def test_plans_that_make_no_sense_are_refused(call: Program, overrides, capsys, setting):
    assert call(*overrides, f"analysis.{setting}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: analysis.{setting.partition('=')[0]}=")
    assert error.count("\n") == 1


PAIR = ContrastConfig("restkv", "restkv_neither", "smoothing")
OTHER = ContrastConfig("h2o", "random", "it")


def test_pairs_of_another_experiment_are_no_change(store, tmp_path):
    report(store, tmp_path / "one", contrasts=[OTHER])
    assert report(store, tmp_path / "two", contrasts=[PAIR]).stands
    assert report(store, tmp_path / "three", contrasts=[OTHER, PAIR]).stands  # it has grown


def test_a_pair_that_is_left_out_later_is_a_change(store, tmp_path):
    report(store, tmp_path / "one", contrasts=[PAIR, OTHER])
    record = report(store, tmp_path / "two", contrasts=[PAIR])
    assert not record.stands
    assert "contrasts" in record.sentence()


def test_a_report_of_pairs_alone_is_on_record(store, tmp_path):
    about = asked(restkv=None)
    report(store, tmp_path / "one", about, contrasts=[OTHER])
    assert not report(store, tmp_path / "two", about, contrasts=[OTHER], margin=5.0).stands


def test_a_plan_without_pairs_of_an_earlier_version_is_none_that_changed(store, tmp_path):
    report(store, tmp_path / "one", contrasts=[PAIR])
    (found,) = store.plans()
    rules = {k: v for k, v in json.loads(found["rules"]).items() if k != "contrasts"}
    store.put_plan({**found, "plan": "earlier", "rules": json.dumps(rules)})
    assert report(store, tmp_path / "two", contrasts=[PAIR]).stands


IDLE = {"restkv": {"method": "restkv", "alpha": 0.3, "merge": "none", "boundary_share": 0.1}}
ACTIVE = {"restkv": {"method": "restkv", "alpha": 0.3, "merge": "pivot"}}


@pytest.mark.parametrize(("first", "then"), [({}, IDLE), (IDLE, {})])
def test_a_parameter_that_does_nothing_makes_no_other_plan(store, tmp_path, first, then):
    folder = tmp_path / "one"
    before = report(store, folder, asked(**first))
    again = report(store, folder, asked(answered=9, **then))
    assert again == before
    assert len(store.plans()) == 1


def test_a_plan_of_an_earlier_version_lists_what_does_nothing(store, tmp_path):
    folder = tmp_path / "one"
    before = report(store, folder)
    (found,) = store.plans()
    rules = json.loads(found["rules"])
    rules["parameters"]["restkv"] |= IDLE["restkv"]
    store.put_plan({**found, "rules": json.dumps(rules)})
    told = json.loads((folder / plan.FILE).read_text())
    told["settings"]["methods"]["restkv"] |= IDLE["restkv"]
    (folder / plan.FILE).write_text(json.dumps(told))
    assert report(store, folder, asked(answered=9, **IDLE)) == before
    with pytest.raises(UserError, match=r"methods\.restkv\.merge None -> pivot"):
        report(store, folder, asked(**ACTIVE))
