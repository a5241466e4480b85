"""Files that policies read, safetensors or JSON: where they lie, and a digest of what lies there.

Must not know what is in them.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

PIN = "@sha256:"
Stamps = tuple[tuple[str, int, int], ...]  # path, time of the last change, size


def found(kind: str, place: str) -> tuple[str, Stamps]:
    """A place without its pin, and the files there: a file itself, or a folder's *.safetensors.

    kind: the parameter that names the place, such as gates. ValueError, one sentence, where there
    are none, and where they are others than the pinned ones.
    """
    where, _, wanted = place.partition(PIN)
    stamps = _stamps(kind, where)
    if wanted and wanted != _digest(stamps):
        raise ValueError(f"{kind}={where} has changed since it was chosen; give the command again.")
    return where, stamps


def pinned(kind: str, place: str) -> str:
    """The place with the start of sha256 over what lies there, so that its name tells of it."""
    where = place.partition(PIN)[0]
    return f"{where}{PIN}{_digest(_stamps(kind, where))}"


def _stamps(kind: str, where: str) -> Stamps:
    files = _files(kind, Path(where).expanduser())
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=16)
def _digest(stamps: Stamps) -> str:
    digest = hashlib.sha256()
    for file, _, _ in stamps:
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


def _files(kind: str, place: Path) -> list[Path]:
    try:
        files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
        if files and all(file.is_file() for file in files):
            return files
    except OSError:
        pass
    form = "JSON" if place.suffix == ".json" else "safetensors"
    raise ValueError(
        f"{kind}={place} is no {form} file and no folder with safetensors; name what was made for "
        "this model."
    )
