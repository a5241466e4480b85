"""The name of a run says what differs from the defaults, and no two plans share one."""

import pytest

from harness.run import sweep
from tests.run.conftest import Program

BASE = "tiny_vlm-mmbench_mini-replay-seed0"


@pytest.fixture
def name(call: Program, monkeypatch: pytest.MonkeyPatch):
    """The run's name that a command line gets."""

    def named(*typed: str) -> str:
        found: list[str] = []
        monkeypatch.setattr(sweep, "run", lambda config: found.append(config.run.name))
        assert call(*typed) == 0
        return found[0]

    return named


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], BASE),
        (["limit=null", "seed=0", "ratios=[0.5,0.7,0.8,0.9,0.95]", "protocol=replay"], BASE),
        (["run.dir=/elsewhere", "wandb.mode=disabled", "engine.threads=2"], BASE),
        (["analysis.resamples=100", "store.repair=true"], BASE),
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
        (["experiment=smoothing"], f"smoothing-{BASE}"),
        (["experiment=smoothing", "ratios=[0.9]"], f"smoothing-{BASE}-ratios=0.9"),
        (["task=[needle_mini,mmbench_mini]"], "tiny_vlm-mmbench_mini+needle_mini-replay-seed0"),
        (["run.name=mine", "limit=3"], "mine"),
    ],
)
def test_a_name_says_what_differs(name, typed: list[str], expected: str) -> None:
    assert name(*typed) == expected


def test_two_folders_of_weights_under_one_name_have_names_of_their_own(name) -> None:
    found = {name(f"model.pretrained=/models/{where}/best", "model.name=x") for where in "ab"}
    assert len(found) == 2
    assert all(one.startswith("x-mmbench_mini-replay-seed0-pretrained=best-") for one in found)


def test_a_long_name_is_cut_and_still_its_own(name) -> None:
    texts = [f"tasks.mmbench_mini.overrides.description={'a' * 300}{end}" for end in "xy"]
    found = {name(text) for text in texts}
    assert len(found) == 2
    assert max(map(len, found)) < 140
