"""What tests compose once is what Hydra composes for a program of its own."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from harness.settings.config import CONF, register
from tests import composing


def composed(*typed: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose("config", list(typed), return_hydra_config=True)
    assert isinstance(found, DictConfig)
    told = OmegaConf.to_container(found)
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize(
    "typed",
    [
        ("ratios=[0.9]",),
        ("method=[h2o,full]", "methods.h2o.buffer=9", "task=[mmbench_mini,ruler_mini]", "seed=3"),
        ("experiment=long_answers", "protocol=context", "run.name=x"),
    ],
)
def test_it_is_the_same_whatever_was_typed_before(typed: tuple[str, ...]):
    register()
    with composing.anew():
        want = composed(*typed), composed(typed[0])
    for _ in range(2):
        assert (composed(*typed), composed(typed[0])) == want


def test_a_file_that_changed_is_read_again(tmp_path):
    register()
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    seeds = []
    for seed in (7, 11):
        file.write_text(f"# @package _global_\nseed: {seed}\n")
        seeds.append(composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")["seed"])
    assert seeds == [7, 11]
