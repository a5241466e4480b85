"""Labels by name mean what Hydra makes of their files."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import methods
from harness.settings import labels
from harness.settings.config import CONF, register

LABELS = sorted(path.stem for path in labels.FOLDER.glob("*.yaml"))


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    """Settings with all labels: composing them one by one takes a quarter of a second each."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"method=[{','.join(LABELS)}]", "analysis.contrasts=[]"])


@pytest.mark.parametrize("label", LABELS)
def test_a_label_is_what_hydra_composes(composed: DictConfig, label: str) -> None:
    every = OmegaConf.to_container(composed.methods[label])
    given = {name: value for name, value in every.items() if not str(value).startswith("${")}
    method, found = labels.resolve(label)
    assert {"method": method, **found} == given


def test_a_name_without_a_file_stands_for_itself() -> None:
    assert labels.resolve("nothing") == ("nothing", {})
    assert labels.resolve("../config") == ("../config", {})
    assert {"restkv", "snapkv"} <= {*LABELS} & {*methods.names()}
