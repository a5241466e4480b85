from pathlib import Path

import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager

import harness
import methods
from harness.errors import UserError
from harness.scoring import bridge, plugin
from harness.scoring.benchmark import cli_arguments
from harness.scoring.single import EvictBench, single_cell
from tests.run.fakes import FakeEngine

TASKS = Path(harness.__file__).parent / "scoring" / "tasks"


class FakeBridge(FakeEngine):
    """Stands in for the loaded model."""

    def __init__(self, *settings: object) -> None:
        super().__init__()
        self.settings = settings


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.scoring.single.Bridge", FakeBridge)


def test_lmms_eval_finds_the_model_by_its_name() -> None:
    MODEL_REGISTRY_V2.register_manifest(plugin.manifest(), overwrite=True)
    assert MODEL_REGISTRY_V2.get_model_class("evictbench") is EvictBench


@pytest.mark.usefixtures("fake")
def test_model_args_become_one_cell_and_lmms_eval_scores_it(tmp_path: Path) -> None:
    MODEL_REGISTRY_V2.register_manifest(plugin.manifest(), overwrite=True)
    results = simple_evaluate(
        model="evictbench",
        model_args="pretrained=x,method=restkv,ratio=0.9,alpha=0.5,protocol=paper",
        tasks=["mmbench_mini"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        batch_size=1,
        limit=20,
        bootstrap_iters=0,
        cli_args=cli_arguments(tmp_path),
    )
    assert 0 <= results["results"]["mmbench_mini"]["gpt_eval_score,none"] <= 100
    assert len(results["samples"]["mmbench_mini"]) == 20


@pytest.mark.usefixtures("fake")
def test_a_method_that_did_not_fit_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simple_evaluate(
        model=EvictBench("x", "lacache", ratio=0.9),  # of which the stand-in says that it fell back
        tasks=["mmbench_mini"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        limit=3,
        bootstrap_iters=0,
        cli_args=cli_arguments(tmp_path),
    )
    told = capsys.readouterr()
    assert (told.err + told.out).count("lacache did not fit a prompt (streaming_llm)") == 1


@pytest.mark.usefixtures("fake")
def test_the_long_pictures_are_a_task_too(tmp_path: Path) -> None:
    results = simple_evaluate(
        model=EvictBench("x", "restkv", ratio=0.9, tile=128),
        tasks=["mmbench_mini_long"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        limit=3,
        bootstrap_iters=0,
        cli_args=cli_arguments(tmp_path),
    )
    assert [row["doc"]["source"] for row in results["samples"]["mmbench_mini_long"]] == [
        "mmbench_mini_long"
    ] * 3


@pytest.mark.usefixtures("fake")
def test_every_part_of_the_cell_arrives() -> None:
    model = EvictBench(
        "folder", "restkv", ratio=0.9, alpha=0.5, protocol="paper", device="cpu", kernels="torch"
    )
    assert (model.cell.method, model.cell.ratio, model.cell.budget) == ("restkv", 0.9, None)
    assert dict(model.cell.params)["alpha"] == 0.5
    assert dict(model.cell.params)["window"] == 32
    assert isinstance(model.bridge, FakeBridge)
    settings, protocol, device, dtype, engine, patterns = model.bridge.settings
    assert (settings.pretrained, protocol.name, device, dtype) == ("folder", "paper", "cpu", "auto")
    assert engine.kernels == "torch"
    assert list(patterns) == ["dense"]


@pytest.mark.usefixtures("fake")
def test_a_rule_and_a_number_of_kept_tokens_go_together() -> None:
    cell = EvictBench("folder", "snapkv", budget=16, rule="pyramid", protect="text").cell
    assert cell.budget == 16
    assert dict(cell.params) == methods.parameters("snapkv") | {
        "budget": "pyramid",
        "protect": "text",
    }
    assert dict(single_cell("h2o", 0.9, None, {}).params) == methods.parameters("h2o")


def test_the_full_cache_needs_no_amount() -> None:
    assert not single_cell("full", None, None, {}).evicts


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("foo", 0.9, None, {}), "foo is not a method"),
        (("restkv", 0.9, None, {"alhpa": 1}), "alhpa is not a parameter"),
        (("restkv", 0.9, None, {"alpha": 7}), "alpha=7"),
        (("restkv", None, None, {}), "exactly one of ratio"),
        (("restkv", 0.9, 16, {}), "exactly one of ratio"),
        (("restkv", 1.0, None, {}), "ratios has 1"),
        (("restkv", None, 0, {}), "budgets has 0"),
        (("restkv", 0.9, "pyramid", {}), "write rule=pyramid"),
        (("restkv", 0.9, None, {}, "foo"), "budget='foo'.*adaptive"),
        (("streaming_llm", 0.9, None, {}, "pyramid"), "not a parameter of streaming_llm"),
    ],
)
def test_bad_model_args_are_refused(arguments: tuple, told: str) -> None:
    with pytest.raises(UserError, match=told):
        single_cell(*arguments)


def test_batches_are_refused() -> None:
    with pytest.raises(UserError, match="batch_size=4"):
        EvictBench("folder", batch_size=4)


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    from harness.settings.config import ModelConfig, ProtocolConfig

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="cannot be loaded") as refused:
        bridge.Bridge(ModelConfig("m", str(tmp_path)), ProtocolConfig("replay"))
    assert "\n" not in str(refused.value)
