"""Where a model's files are: a folder, a GGUF file, the local Hugging Face cache or the hub.

Says so within a second. Must not know model classes or tensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from stat import S_ISDIR

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from harness.models import gguf, modelfiles, parts

_PATIENCE = 0.8  # seconds for the one question to the hub
_SMALL = ["*.json", "*.safetensors"]


@dataclass(frozen=True)
class Source:
    """What from_pretrained takes: folder or hub id, commit of a hub id, and where all is here.

    sha256: of the GGUF file or the parts that the folder was made from.
    """

    name: str
    commit: str | None
    folder: Path | None
    sha256: str | None = None

    @property
    def local(self) -> bool:
        """Whether nothing has to be downloaded."""
        return self.folder is not None

    def size(self) -> int | None:
        """Bytes of the weights' files; None where they are not here."""
        if self.folder is None:
            return None
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors")) or None

    def fingerprint(self) -> str:
        """The commit of a hub id; sha256 of a GGUF file, or over names and contents of a folder."""
        if known := self.commit or self.sha256:
            return known
        digest = hashlib.sha256()
        folder = Path(self.name)
        named = folder / "additional_chat_templates"
        places = [folder, named] if named.is_dir() else [folder]
        found = sorted(
            p for place in places for p in place.iterdir() if p.suffix in modelfiles.DEFINING
        )
        for path in found:
            digest.update(path.name.encode())
            with modelfiles.readable(path), path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def locate(pretrained: str, revision: str | None = None) -> Source:
    """Find a model. ValueError, one sentence, when it is nowhere or the hub cannot be reached."""
    made = gguf.unpacked(pretrained) or parts.joined(pretrained)
    folder, sha256 = made or (_folder(pretrained), None)
    if folder is not None:
        modelfiles.check(folder)
        return Source(str(folder), None, folder, sha256)
    if pretrained.count("/") > 1 or pretrained.startswith((".", "/", "~")):
        raise ValueError(f"model folder {pretrained!r} does not exist; give an existing folder.")
    snapshot = _cached(pretrained, revision)
    if snapshot is not None:
        return Source(pretrained, snapshot.name, snapshot)
    return Source(pretrained, _ask_hub(pretrained, revision), None)


def _folder(pretrained: str) -> Path | None:
    """The folder of that name; None where there is nothing of that name."""
    try:
        folder = Path(pretrained).expanduser()
        kind = folder.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"model folder {pretrained!r} cannot be opened ({reason}); give another folder."
        ) from error
    if not S_ISDIR(kind):
        raise ValueError(f"model {pretrained!r} is a file; give the folder that holds it.")
    return folder


def _cached(name: str, revision: str | None) -> Path | None:
    """A complete snapshot in the local cache; None when there is none."""
    try:
        snapshot = Path(
            snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=_SMALL)
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ValueError(
            f"model {name!r} is neither a folder nor a hub id of the form owner/name; check the "
            "name."
        ) from error
    try:
        modelfiles.check(snapshot)
        files = modelfiles.weight_files(snapshot, modelfiles.read(snapshot / modelfiles.CONFIG))
    except modelfiles.Missing:
        return None
    return snapshot if all(path.exists() for path in files) else None


def _ask_hub(name: str, revision: str | None) -> str:
    """Commit of a hub id. One short attempt in a thread, since a name look-up knows no timeout."""
    errors: list[BaseException] = []
    pool = ThreadPool(1)
    question = pool.apply_async(
        HfApi().model_info,
        (name,),
        {"revision": revision, "timeout": _PATIENCE},
        error_callback=errors.append,
    )
    question.wait(_PATIENCE)
    pool.close()
    if question.ready() and question.successful():
        return str(question.get().sha)
    answer = errors[0] if errors else None
    if isinstance(answer, HfHubHTTPError):
        status = getattr(answer.response, "status_code", "an error")
        raise ValueError(
            f"the hub answered {status} for model {name!r}; check the name and revision, and log "
            "in if it is gated."
        ) from answer
    raise ValueError(
        f"model {name!r} is neither a folder nor in the local Hugging Face cache, and the hub "
        "cannot be reached; give a folder, or connect and try again."
    ) from answer
