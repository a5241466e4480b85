"""torchvision of another build than torch can be imported, and image processors work with it."""

import importlib.metadata
import subprocess
import sys

import pytest

from harness.process import vision


@pytest.mark.parametrize(
    ("torch_build", "vision_build", "mismatched"),
    [("2.13.0+cpu", "0.28.0", True), ("2.13.0+cpu", "0.28.0+cpu", False),
     ("2.13.0", "0.28.0", False), ("2.13.0+cu130", "0.28.0+cu130", False),
     ("2.13.0+cpu", None, False)],
)  # fmt: skip
def test_builds_that_differ_are_known(monkeypatch, torch_build, vision_build, mismatched):
    def found(package: str) -> str:
        if package == "torchvision" and vision_build is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return torch_build if package == "torch" else str(vision_build)

    monkeypatch.setattr(importlib.metadata, "version", found)
    assert vision.mismatched() == mismatched


def test_processors_of_transformers_work_where_torchvision_comes_first():
    """In a process of its own, before anything of torchvision is imported."""
    code = (
        "import harness, torchvision, torch, sys;"
        "from transformers import Qwen2VLImageProcessor;"
        "made = Qwen2VLImageProcessor(min_pixels=784, max_pixels=784)("
        "torch.zeros(3, 56, 56, dtype=torch.uint8), return_tensors='pt');"
        "print(tuple(made['image_grid_thw'][0].tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(1, 2, 2)\n", done.stderr


def test_it_waits_once_and_for_torchvision_alone(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    named: list[bool] = []
    monkeypatch.setattr(vision, "name_operators", lambda: named.append(True))
    monkeypatch.setattr(vision, "mismatched", lambda: True)
    vision.watch()
    vision.watch()
    (finder,) = sys.meta_path
    assert finder.find_spec("torch", None) is None
    assert not named
    assert finder.find_spec("torchvision", None) is None
    assert (named, sys.meta_path) == ([True], [])
