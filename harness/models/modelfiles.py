"""Whether the files of a model folder can be read: what is absent, cut short or only a pointer.

Reads names and headers, no tensors. Must not know transformers or torch, so that it costs nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_JSON = (
    CONFIG,
    INDEX,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
_TEXT = ("chat_template.jinja", "merges.txt", "vocab.txt")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".safetensors")
BLOCK = 1 << 16
_POINTER = b"version https://git-lfs.github.com/spec/v1"
# The files of a folder that can change an answer.
DEFINING = {".json", ".safetensors", ".jinja", ".model", ".txt", ".py", ".tiktoken"}
_PLAIN = ("F64", "F32", "F16", "BF16")  # other numbers need a scale beside them
_MASK = re.compile(r"att(entio)?n\.(masked_)?bias$")  # kept with the weights by older code


class Missing(ValueError):
    """Files of a model that are not in its folder."""


def check(folder: Path) -> None:
    """Refuse a folder whose settings and texts cannot be read.

    ValueError, one sentence, names the file and says what to do.
    """
    with readable(folder):
        present = {path.name: path for path in folder.iterdir()}
    if CONFIG not in present:
        raise Missing(
            f"model folder {str(folder)!r} has no config.json; give a folder written by "
            "save_pretrained."
        )
    for name in (*_JSON, *_TEXT):
        if name in present:
            _check_text(present[name], name in _JSON)
    if "adapter_config.json" in present:
        raise ValueError(
            f"model folder {str(folder)!r} holds an adapter beside its weights; merge it into the "
            "weights, save them with save_pretrained and give that folder."
        )


def check_weights(folder: Path) -> int:
    """Refuse weight files that are absent, damaged or of two checkpoints; reads their headers.

    Returns the number of tensors.
    """
    config = read(folder / CONFIG)
    held: dict[str, Path] = {}
    for path in weight_files(folder, config):
        for name in _tensors(path, bool(quantisation(config))):
            if name in held:
                raise ValueError(
                    f"tensor {name} stands in {held[name]} and in {path.name} as well; download "
                    "both again."
                )
            held[name] = path
    if lost := sorted(_listed(folder, config).keys() - held.keys()):
        raise ValueError(
            f"{folder / _chosen(config, folder)} names tensors that its files do not hold "
            f"({listed(lost)}); {_AGAIN}"
        )
    return len(held)


def read(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    with readable(path):
        content = path.read_bytes()
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({_why(content, error)}); {_AGAIN}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; {_AGAIN}")
    return found


def quantisation(config: Mapping[str, Any]) -> Any:
    """What a config says of quantised weights, by the places where transformers looks."""
    text = config.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, Mapping) else None
    return config.get("quantization_config") or config.get("compression_config") or inner


def weight_files(folder: Path, config: dict[str, Any]) -> list[Path]:
    """The files that the weights are read from, by the rules of from_pretrained."""
    chosen = _chosen(config, folder)
    if not chosen.endswith(".index.json"):
        return [folder / chosen]
    shards = _listed(folder, config)
    if not shards or not all(map(_inside, shards.values())):
        raise ValueError(f"{folder / chosen} names no weight files of its folder; {_AGAIN}")
    paths = [folder / name for name in sorted(set(shards.values()))]
    lost = [path.name for path in paths if not os.path.lexists(path)]
    if lost:
        raise Missing(
            f"{folder / chosen} names weight files that are not there ({listed(lost)}); download "
            "them, or save the model again."
        )
    return paths


def _chosen(config: Mapping[str, Any], folder: Path) -> str:
    """The name of the weights, or of the list of their shards."""
    named = config.get("transformers_weights")
    names = [named] if isinstance(named, str) else [WEIGHTS, INDEX]
    chosen = next((name for name in names if os.path.lexists(folder / name)), None)
    if chosen is None:
        raise Missing(_absent(folder, " or ".join(names)))
    return chosen


def _listed(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The file of each tensor by the list of shards; empty where there is none."""
    chosen = _chosen(config, folder)
    shards = read(folder / chosen).get("weight_map") if chosen.endswith(".index.json") else None
    return shards if isinstance(shards, dict) else {}


def listed(names: list[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest:,} more" if rest > 0 else "")


_AGAIN = "download it again, or save the model again with save_pretrained."


def _inside(name: object) -> bool:
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in one sentence that a file cannot be read."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{error.filename or path} cannot be read ({error.strerror or error}); give a folder "
            "whose files are there and may be read."
        ) from error


def _check_text(path: Path, is_json: bool) -> None:
    if is_json:
        read(path)
        return
    with readable(path):
        content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text ({_why(content, error)}); {_AGAIN}") from error
    if _empty(content) or content.startswith(_POINTER):
        raise ValueError(f"{path} cannot be used: {_why(content, None)}; {_AGAIN}")


def _why(content: bytes, error: Exception | None) -> str:
    """What a file holds instead of what its name says."""
    if content.startswith(_POINTER):
        return "it is a pointer of Git LFS, to be replaced by `git lfs pull`"
    if _empty(content):
        return "it is empty"
    return " ".join(str(error).split()) or type(error).__name__


def _empty(content: bytes) -> bool:
    return not content.strip(b"\0 \t\r\n")


def _absent(folder: Path, wanted: str) -> str:
    other = sorted(p.name for p in folder.iterdir() if p.suffix in _OTHER_WEIGHTS)
    if not other:
        return (
            f"model folder {str(folder)!r} cannot be loaded: it has no weights ({wanted}); "
            "download them, or give a folder written by save_pretrained."
        )
    if single := next((name for name in other if name.endswith(".gguf")), None):
        return (
            f"model folder {str(folder)!r} cannot be loaded: it has no {wanted}; give "
            f"{str(folder / single)!r} in its place."
        )
    return (
        f"model folder {str(folder)!r} cannot be loaded: it has {listed(other)} and no {wanted}; "
        "only safetensors are read, because other formats can run code, so load them where you "
        "trust them and save with save_pretrained."
    )


def _tensors(path: Path, quantised: bool) -> list[str]:
    """Names of a file's tensors; ValueError where the file is not whole."""
    with readable(path), path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER or not start.strip(b"\0"):
        reason = _why(start, None) if start == _POINTER or not start else "it begins with zeros"
        raise ValueError(f"weight file {path} cannot be used: {reason}; {_AGAIN}")
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            packed = [] if quantised else [n for n in names if _is_packed(file.get_slice(n), n)]
    except Exception as error:  # safetensors raises its own and OSError
        raise ValueError(
            f"weight file {path} is damaged or cut short ({_why(start, error)}); {_AGAIN}"
        ) from error
    if packed:
        raise ValueError(
            f"{path} holds packed or quantised weights ({listed(packed)}) and {CONFIG} has no "
            "quantization_config; give the config.json that was saved with these weights."
        )
    if _ends_in_zeros(path):
        raise ValueError(
            f"weight file {path} ends in nothing but zeros, as a download leaves it that was not "
            f"finished; {_AGAIN}"
        )
    return names


def _ends_in_zeros(path: Path) -> bool:
    """Whether the last matrix of a file and all behind it hold no other number."""
    with readable(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        held = [one for name, one in json.loads(file.read(length)).items() if name[:2] != "__"]
        matrices = [one["data_offsets"][0] for one in held if len(one["shape"]) > 1]
        if not matrices:
            return False
        size = file.seek(0, os.SEEK_END)
        place = 8 + length + max(matrices)
        file.seek(max(place, size - BLOCK))  # the end first: seldom is more to be read
        if file.read().strip(b"\0"):
            return False
        file.seek(place)
        return not any(block.strip(b"\0") for block in iter(lambda: file.read(BLOCK), b""))


def _is_packed(tensor: Any, name: str) -> bool:
    weight = name.endswith(("weight", "bias")) and not _MASK.search(name)
    return weight and tensor.get_dtype() not in _PLAIN
