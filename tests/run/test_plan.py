import html
from pathlib import Path

import pytest

from harness import collect, plan
from harness.config import AnalysisConfig, Config, ProtocolConfig, TaskConfig
from harness.store import FIELDS, Store
from tests.run.conftest import Program
from tests.run.fakes import FakeEngine


def config(**changed: object) -> Config:
    analysis = {key: changed.pop(key) for key in list(changed) if hasattr(AnalysisConfig, key)}
    settings = {
        "ratios": [0.5, 0.9],
        "tasks": {"mini": TaskConfig("mini")},
        "protocol": ProtocolConfig("replay"),
        "methods": {"restkv": {"method": "restkv", "alpha": 0.3}},
        **changed,
    }
    return Config(**settings, analysis=AnalysisConfig(**analysis))


BEFORE = config()


def answered(store: Store) -> None:
    """One answer of one cell."""
    values = dict.fromkeys(FIELDS, 0) | {"text": "A", "token_ids": "[]", "letter_logits": "{}"}
    store.write(0, {"cell": values})


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "s.sqlite") as opened:
        yield opened


def test_points_become_a_fraction():
    assert plan.plan_of(config(margin=2.5, seed=3)).margin == 0.025
    assert plan.plan_of(config(seed=3)).seed == 3


def test_a_plan_before_the_first_answer_is_on_record(store):
    plan.register(store, config())
    assert plan.registration(store, config()) == (
        True,
        "The plan was put on record before the first answer was computed.",
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"margin": 3.0}, "margin 2.0 -> 3.0"),
        ({"method": "snapkv"}, "method restkv -> snapkv"),
        ({"ratios": [0.9]}, "ratios [0.5, 0.9] -> [0.9]"),
        ({"extraction": "strict"}, "extraction {'mini': 'lmms_eval'} -> {'mini': 'strict'}"),
        ({"protocol": ProtocolConfig("paper")}, "'name': 'paper'"),
        ({"methods": {"restkv": {"method": "restkv", "alpha": 0.7}}}, "'alpha': 0.7"),
        ({"limit": 30}, "limit None -> 30"),
        ({"tasks": {"other": TaskConfig("other")}}, "tasks ['mini'] -> ['other']"),
    ],
)
def test_a_later_change_is_told_and_the_record_stays(store, changed, said):
    plan.register(store, BEFORE)
    answered(store)
    plan.register(store, config(**changed))
    registered, sentence = plan.registration(store, config(**changed))
    assert not registered
    assert said in sentence
    assert plan.registration(store, BEFORE)[0]


@pytest.mark.parametrize("changed", [{"resamples": 500}, {"seed": 1}, {"ratios": [0.9, 0.5]}])
def test_what_changes_no_test_is_free(store, changed):
    plan.register(store, config())
    assert plan.registration(store, config(**changed))[0]


def test_a_plan_may_change_until_there_is_an_answer(
    call: Program, overrides, tmp_path, monkeypatch
):
    monkeypatch.setattr(collect, "load_engine", lambda *loading: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(*overrides)
    monkeypatch.setattr(collect, "load_engine", lambda *loading: FakeEngine())
    assert call(*overrides, "analysis.margin=5") == 0
    assert "put on record before the first" in (tmp_path / "run" / "answer.md").read_text()


def test_a_plan_after_the_first_answer_is_none(
    call: Program, engine: FakeEngine, overrides, tmp_path
):
    assert call(*overrides) == 0
    with Store(tmp_path / "run" / "responses.sqlite") as store:
        assert store.get(plan.REGISTERED) is not None
        store._db.execute("DELETE FROM notes WHERE name = 'analysis'")
    assert call(*overrides) == 0
    text = (tmp_path / "run" / "answer.md").read_text()
    assert "No plan was on record" in text
    assert "Exploratory" in text


def test_a_run_says_whether_its_plan_stood(call: Program, engine: FakeEngine, overrides, tmp_path):
    assert call(*overrides) == 0
    answer = tmp_path / "run" / "answer.md"
    assert "The plan was put on record before the first answer" in answer.read_text()
    assert call(*overrides, "analysis.margin=5") == 0
    assert "margin 2.0 -> 5.0" in html.unescape(answer.read_text())
    assert "may lose 5 points" in answer.read_text()


@pytest.mark.parametrize(
    "setting",
    ["margin=0", "margin=100", "alpha=0.5", "alpha=0", "power=1", "above=1", "resamples=10"],
)
def test_plans_that_make_no_sense_are_refused(call: Program, overrides, capsys, setting):
    assert call(*overrides, f"analysis.{setting}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: analysis.{setting.partition('=')[0]}=")
    assert error.count("\n") == 1
