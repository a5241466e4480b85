"""The ways in which a folder with a model is faulty, or only written otherwise."""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.campaign import tensors
from scripts.campaign.tensors import Change

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3373192\n"


@dataclass(frozen=True)
class Folder:
    """A copy of a model with a change: `want` is refuse, right, either (refused or equal), or
    finite (refused, or rows that are not finite are failed and the others equal).
    """

    said: str
    change: Callable[[Path, random.Random], Path | None]
    want: str = "refuse"
    words: tuple[str, ...] = ()
    dtype: str = "float32"
    more: tuple[str, ...] = ()

    def make(self, source: Path, place: Path, rng: random.Random) -> Path:
        """Copy and change; returns what model.pretrained names."""
        folder = place / "copy"
        shutil.copytree(source, folder)
        return self.change(folder, rng) or folder


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Any], None]:
    """A JSON file with its content changed."""

    def edit(folder: Path, rng: random.Random) -> None:
        path = folder / name
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed, indent=1))

    return edit


def set_value(name: str, key: str, value: Any) -> Callable[[Path, Any], None]:
    """Set a value, `key` with dots for what lies inside; ... removes it."""

    def change(content: dict[str, Any]) -> None:
        *inner, last = key.split(".")
        node = content
        for part in inner:
            node = node[part]
        if value is ...:
            node.pop(last)
        else:
            node[last] = value

    return edited(name, change)


def replaced(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Path, Any], None]:
    """Replace a file's content; None removes it."""

    def edit(folder: Path, rng: random.Random) -> None:
        path = folder / name
        content = change(path.read_bytes())
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return edit


def weights(change: Change) -> Callable[[Path, random.Random], None]:
    """Tensors changed."""
    return lambda folder, rng: tensors.rewrite(folder, change, rng)


def config(key: str, value: Any, want: str = "refuse", *words: str) -> Folder:
    """A value of config.json."""
    said = f"config {key} {'removed' if value is ... else f'= {value!r}'}"
    return Folder(said, set_value("config.json", key, value), want, words)


def spoilt(name: str, want: str = "refuse", without: str = "refuse") -> tuple[Folder, ...]:
    """Each way in which a file can be no file of its kind."""
    ways: Mapping[str, Callable[[bytes], bytes | None]] = {
        "empty": lambda c: b"",
        "half": lambda c: c[: len(c) // 2],
        "an LFS pointer": lambda c: POINTER.encode(),
        "HTML": lambda c: b"<html>404 Not Found</html>",
        "a list": lambda c: b"[]",
        "null": lambda c: b"null",
        "bytes that are no text": lambda c: bytes(range(128, 256)),
    }
    made = [
        Folder(f"{name}: {how}", replaced(name, way), want, (name,)) for how, way in ways.items()
    ]
    return *made, Folder(f"{name}: missing", replaced(name, lambda c: None), without)


def template(text: str, want: str = "refuse") -> Folder:
    """Another chat template."""
    said = f"template {text!r:.50}"
    return Folder(
        said, replaced("chat_template.jinja", lambda c: text.encode()), want, ("template",)
    )


def template_inside(folder: Path, rng: random.Random) -> None:
    """The template in the tokenizer's settings, as older folders have it."""
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    set_value("tokenizer_config.json", "chat_template", text)(folder, rng)


def moved(name: str) -> Callable[[Path, Any], Path]:
    """The folder under another name."""
    return lambda folder, rng: folder.rename(folder.with_name(name))


def linked(folder: Path, rng: random.Random) -> Path:
    """As the hub's cache does it: every file a link to a blob."""
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    link = folder.with_name("link")
    link.symlink_to(folder)
    return link


def looped(folder: Path, rng: random.Random) -> None:
    """Weights that are a link to themselves."""
    path = folder / "model.safetensors"
    path.unlink()
    path.symlink_to(path)


def more_files(folder: Path, rng: random.Random) -> None:
    """Files beside the model that say nothing about it."""
    (folder / "README.md").write_text("# x")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / "pytorch_model.bin").write_bytes(b"garbage")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    (folder / "training.json").unlink()


def pickle_only(folder: Path, rng: random.Random) -> None:
    """The weights as torch pickles them."""
    import torch

    torch.save(tensors.load(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def vocabulary(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, Any], None]:
    """A change of the tokenizer."""
    return edited("tokenizer.json", change)


def beyond(content: dict[str, Any]) -> None:
    """The words of the questions get numbers that the embedding does not have."""
    known = content["model"]["vocab"]
    for word in ("the", "what", "is", "color", "A", "B"):
        if word in known:
            known[word] += 5000


def no_image_token(content: dict[str, Any]) -> None:
    """No word for an image."""
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<image>"]
    content["model"]["vocab"].pop("<image>", None)


def halved(content: dict[str, Any]) -> None:
    """Forty words are left."""
    known = content["model"]["vocab"]
    content["model"]["vocab"] = {k: v for k, v in known.items() if v < 40}
