"""Data files on the Hugging Face hub, and their copies on this machine.

For tasks whose YAML reads files by `hf://datasets/<owner>/<name>/<file>`, alone or behind
`zip://<member>::`. Must not know any task.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.records.atomic import replacing
from harness.scoring.hub import PATIENCE

ROOT = "EVICTBENCH_DATA"  # names the folder that holds <owner>/<name>/<file>, own copies
HUB = re.compile(r"(?:zip://(.+)::)?hf://datasets/([^/@]+/[^/@]+)/(.+)$")


def repositories(settings: Mapping[str, Any] | None) -> list[str]:
    """The data sets of the hub that a task's dataset_kwargs read files from, each once."""
    found: dict[str, None] = {}
    _map((settings or {}).get("data_files"), lambda match: found.setdefault(match[2]))
    return list(found)


def local(task: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same dataset_kwargs with every hub file replaced by a file on this machine.

    A file is looked for under the folder that the environment variable EVICTBENCH_DATA names, one
    out of a zip also beside the zip, then in the hub's local cache, and is downloaded into that
    cache otherwise.

    Args:
        task: the name shown in errors.
        settings: a task's dataset_kwargs.

    Raises:
        UserError: a file is in neither place and the hub cannot be reached or has no such file.
    """
    settings = dict(settings or {})
    if not repositories(settings):
        return settings

    def place(match: re.Match[str]) -> str:
        member, repository, file = match.groups()
        if member and (loose := _own(repository, member)):
            return str(loose)
        path = _own(repository, file) or _cached(repository, file)
        path = path or _downloaded(task, repository, file, member)
        return str(_member(path, member) if member else path)

    files = _map(settings["data_files"], place)
    return {"cache_dir": str(_converted()), **settings, "data_files": files}


def _map(files: Any, place: Callable[[re.Match[str]], Any]) -> Any:
    """Replace every hub file in nested data_files by what `place` makes of it."""
    if isinstance(files, Mapping):
        return {split: _map(value, place) for split, value in files.items()}
    if isinstance(files, (list, tuple)):
        return [_map(value, place) for value in files]
    match = HUB.match(files) if isinstance(files, str) else None
    return files if match is None else place(match)


def _member(archive: Path, name: str) -> Path:
    """One file of a zip, taken out once for every state of the zip.

    datasets can open it in place, but knows it by its name alone: it would go on serving an earlier
    archive's.
    """
    state = archive.stat()
    key = f"{archive.resolve()} {state.st_size} {state.st_mtime_ns}"
    target = _converted() / hashlib.sha256(key.encode()).hexdigest()[:16] / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                replacing(target) as part,
                zipfile.ZipFile(archive) as opened,
                opened.open(name) as source,
            ):
                part.write_bytes(source.read())
        except (KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{archive} is no zip file that holds {name}: put the hub's own file there."
            ) from error
    return target


def _own(repository: str, file: str) -> Path | None:
    """The file under EVICTBENCH_DATA, if that is set and holds it."""
    root = os.environ.get(ROOT)
    path = Path(root or ".").expanduser() / repository / file
    return path.absolute() if root and path.is_file() else None


def _cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, file, repo_type="dataset")
    return Path(path) if isinstance(path, str) else None


def _downloaded(task: str, repository: str, file: str, member: str | None) -> Path:
    """Fetch a file into the hub's cache; asked first, since a download retries for 24 s offline."""
    from huggingface_hub import hf_hub_download

    reason = "which cannot be reached"
    try:
        offered = _offered(repository)
        if offered is not None and file in offered:
            return Path(hf_hub_download(repository, file, repo_type="dataset"))
        if offered is not None:
            reason = "which has no such file there"
    except Exception as error:  # the hub's client has changed the library that raises
        reason = f"which refuses it ({type(error).__name__})"
    copies = " or ".join(f"{repository}/{name}" for name in (file, member) if name)
    raise UserError(
        f"task={task} needs {file} of the data set {repository} from the Hugging Face hub, "
        f"{reason}: connect, or set {ROOT} to a folder with a copy at {copies}."
    )


def _offered(repository: str) -> list[str] | None:
    """The files of a data set on the hub; None where no answer comes in time."""
    from huggingface_hub import HfApi

    pool = ThreadPool(1)  # a name look-up knows no timeout of its own
    question = pool.apply_async(HfApi().dataset_info, (repository,), {"timeout": PATIENCE})
    question.wait(PATIENCE)
    pool.close()
    if not question.ready() or not question.successful():
        return None
    return [file.rfilename for file in question.get().siblings or ()]


def _converted() -> Path:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "evictbench"
