"""Ways to change a copy of a model folder: its weights, shards, settings, files and code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Fault = Callable[[Path], object]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 3373192\n"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
PROCESSOR = "processor_config.json"
LAYER = "language_model.model.layers.3."


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Fault:
    """The weights after `change` of the mapping."""

    def fault(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file({k: v.contiguous() for k, v in held.items()}, folder / WEIGHTS, {"format": "pt"})

    return fault


def without(*parts: str) -> Fault:
    """The weights without every tensor whose name contains one of `parts`."""

    def change(held: dict[str, torch.Tensor]) -> None:
        found = [name for name in held if any(part in name for part in parts)]
        assert found, f"no tensor of {parts} among {sorted(held)}"
        for name in found:
            del held[name]

    return tensors(change)


def settings(file: str, change: Callable[[dict[str, Any]], object]) -> Fault:
    """A JSON file after `change` of its object."""

    def fault(folder: Path) -> None:
        held = json.loads((folder / file).read_text())
        change(held)
        (folder / file).write_text(json.dumps(held))

    return fault


def half_a_vocabulary(tokenizer: dict[str, Any]) -> None:
    words = tokenizer["model"]["vocab"]
    for word in [word for word, number in words.items() if number >= 250]:
        del words[word]


def text_config(**values: object) -> Fault:
    """Other values in the config of the language model."""
    return settings(CONFIG, lambda config: config["text_config"].update(values))


def written(file: str, content: str | bytes) -> Fault:
    """A file with other content."""
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(raw)


def gone(*files: str) -> Fault:
    """A folder without these files."""
    return lambda folder: [(folder / file).unlink() for file in files]


def truncated(folder: Path, share: float = 0.6) -> None:
    held = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(held[: int(share * len(held))])


def zeroed(folder: Path, start: float = 0.0) -> None:
    """The data behind the header as zeros, as a download leaves it that reserved its space."""
    held = bytearray((folder / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(held[:8], "little")
    first = header + int(start * (len(held) - header))
    held[first:] = bytes(len(held) - first)
    (folder / WEIGHTS).write_bytes(held)


def sharded(folder: Path, fault: Callable[[Path, dict[str, str]], object] | None = None) -> None:
    """The weights in three shards with an index; `fault` may change it."""
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(held)
    index = {}
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        part = {name: held[name] for name in names[i::3]}
        save_file(part, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    if fault:
        fault(folder, index)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(content))


def shards(fault: Callable[[Path, dict[str, str]], object]) -> Fault:
    """A sharded folder with a fault."""
    return lambda folder: sharded(folder, fault)


def shard(number: int) -> str:
    return f"model-{number:05}-of-00003.safetensors"


def renamed(held: dict[str, torch.Tensor]) -> None:
    for name in list(held):
        held[f"module.net.{name}"] = held.pop(name)


def replaced_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def looped(file: str) -> Fault:
    """A file that is a link to itself."""

    def fault(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(folder / file)

    return fault


def remote(code: str, held: dict[str, Any] | None = None) -> Fault:
    """A config of code that comes with the checkpoint."""

    def fault(folder: Path) -> None:
        (folder / "code_here.py").write_text(code)
        names = {"AutoConfig": "OurConfig", "AutoModelForCausalLM": "OurModel"}
        places = {auto: f"code_here.{name}" for auto, name in names.items()}
        config = {**(held or {}), "model_type": "ours", "auto_map": places}
        (folder / CONFIG).write_text(json.dumps(config))

    return fault


OUR_CODE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
class OurConfig(LlamaConfig):
    model_type = "ours"
    {config}
class OurModel(LlamaForCausalLM):
    config_class = OurConfig
    {model}
"""
RAISES = (
    "raise SystemExit(0)",
    "raise KeyError('nobody')",
    "raise Exception",
    "import nothing_of_this_name",
    "def broken(:",
    "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute",
    "def deep(): deep()\ndeep()",
    "raise BaseException('all')",
)
