"""A model of parts as a folder like any other: what `parts.json` names is joined in the cache.

Must not know transformers, so that a part that is not there is reported within a second.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from harness.models import gguf, modelfiles
from harness.process import cache as kept

PARTS, ADAPTER = "parts.json", "adapter.safetensors"


def joined(pretrained: str) -> tuple[Path, str] | None:
    """The folder made of a folder of parts, and sha256 over the parts; None for any other model.

    Args:
        pretrained: a folder with adapter.safetensors, see `harness.models.joining`, and parts.json:
            `text`, `package:<name>` of a text model, and `pictures`, the folder beside it of a
            LLaVA model whose vision tower is taken.

    Raises:
        ValueError: one sentence: a part is absent or cannot be read.
    """
    try:
        place = Path(pretrained).expanduser()
        if not (place / PARTS).is_file():
            return None
    except (OSError, ValueError, RuntimeError):  # whoever opens it as a folder says what is wrong
        return None
    named = modelfiles.read(place / PARTS)
    missing = [key for key in ("text", "pictures") if not isinstance(named.get(key), str)]
    if missing:
        raise ValueError(f"{place / PARTS} names no {missing[0]}; restore the file.")
    text = gguf.unpacked(named["text"])
    if text is None:
        raise ValueError(f"{place / PARTS} names the text {named['text']!r}; name a package.")
    pictures = place.parent / named["pictures"]
    modelfiles.check(pictures)
    digest = hashlib.sha256(text[1].encode())
    for file in (place / PARTS, place / ADAPTER, *_files(pictures)):
        with modelfiles.readable(file), file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    found = digest.hexdigest()
    name = f"{found[:16]}-transformers-{metadata.version('transformers')}"
    folder = kept.folder() / "models" / name

    def write(made: Path) -> None:
        from harness.models import joining  # late: it needs transformers

        joining.write(text[0], pictures, place / ADAPTER, made)

    return kept.made(folder, f"joining the parts of {place.name} once", write), found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in modelfiles.DEFINING)
