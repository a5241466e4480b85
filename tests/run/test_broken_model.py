"""A model that is not what its folder says: the sweep and the plugin refuse it in one sentence."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import harness
from harness.errors import UserError
from harness.scoring.single import EvictBench
from tests.run.conftest import Program

TINY_VLM = Path(harness.__file__).parent / "embedded" / "tiny_vlm"
LOST = "language_model.model.layers.3.self_attn.v_proj.weight"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(TINY_VLM, folder)
    held = load_file(folder / "model.safetensors")
    del held[LOST]
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_sweep_refuses_weights_that_lack_a_tensor(
    call: Program, overrides: list[str], broken: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(*overrides, "limit=1", f"model.pretrained={broken}") == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: model=tiny_vlm: the weights of model")
    assert "1 tensor is missing" in lines[0]


def test_the_plugin_refuses_them_as_well(broken: Path) -> None:
    with pytest.raises(UserError, match=r"1 tensor is missing \(.*layers\.3\.self_attn\.v_proj"):
        EvictBench(str(broken), device="cpu")
