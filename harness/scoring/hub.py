"""Says within a second, in one sentence, when a data set on the hub cannot be had.

Knows the hub client only; must not load any data.
"""

from collections.abc import Iterator, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from harness.errors import UserError

PATIENCE = 0.8  # seconds for the one question to the hub


def require_dataset(task: str, path: str, options: Mapping[str, Any] | None = None) -> None:
    """Check that a task's data set is there: lmms-eval would retry for 8 s and hide the cause.

    Args:
        task: the name shown in the error.
        path: a folder with parquet files, the id of a data set on the hub, or the format of the
            files that `options` name.
        options: the other arguments of datasets.load_dataset.

    Raises:
        UserError: the folder has none, or neither the hub nor the local cache has the data set.
    """
    files = list(_files((options or {}).get("data_files")))
    if files:
        for name in files:
            _require_file(task, name)
    elif path.startswith((".", "/", "~")) or Path(path).is_dir():
        if not any(Path(path).expanduser().rglob("*.parquet")):
            raise UserError(
                f"task={task} has no parquet file under {path}: build it, or point "
                f"tasks.{task}.overrides.dataset_path at the data."
            )
    elif not _cached(path) and not _reachable(path):
        raise UserError(_missing(task, path))


def _missing(task: str, repository: str) -> str:
    return (
        f"task={task} needs the data set {repository} from the Hugging Face hub, which is not in "
        "the local cache and cannot be reached: connect, log in if it is private, or choose a task "
        "that needs no network, such as mmbench_mini, ruler_mini or longbench_mini."
    )


def _files(given: Any) -> Iterator[str]:
    """The paths and addresses in any form of `data_files`."""
    if isinstance(given, str):
        yield given
    elif isinstance(given, Mapping):
        for value in given.values():
            yield from _files(value)
    elif given is not None:
        for value in given:
            yield from _files(value)


def _require_file(task: str, name: str) -> None:
    """A chained address such as zip://data/x.jsonl::hf://datasets/owner/name/data.zip counts by
    its last part.
    """
    place = name.rsplit("::", 1)[-1]
    if place.startswith("hf://datasets/"):
        repository = "/".join(place.removeprefix("hf://datasets/").split("/")[:2])
        repository = repository.partition("@")[0]
        if not _reachable(repository):
            raise UserError(_missing(task, repository))
    elif "://" not in place and not any(Path("/").glob(str(Path(place).resolve()).lstrip("/"))):
        raise UserError(f"task={task} has no file {place}: put it there, or name another.")


def _cached(repository: str) -> bool:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}"
    return any(folder.glob("snapshots/*"))


def _reachable(repository: str) -> bool:
    """One short attempt in a thread, since a name look-up knows no timeout of its own."""
    from huggingface_hub import HfApi

    pool = ThreadPool(1)
    question = pool.apply_async(HfApi().dataset_info, (repository,), {"timeout": PATIENCE})
    question.wait(PATIENCE)
    pool.close()
    return question.ready() and question.successful()
