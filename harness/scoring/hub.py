"""Says within a second, in one sentence, when a data set on the hub cannot be had.

Knows the hub client only; must not load any data.
"""

import os
import re
import stat
from multiprocessing.pool import ThreadPool
from pathlib import Path

from harness.errors import UserError

REPOSITORY = re.compile(r"(?!None$)[\w.-]+(/[\w.-]+)?")
PATIENCE = 0.8  # seconds for the one question to the hub


def require_dataset(task: str, path: str) -> None:
    """Check that a task's data set is there: lmms-eval would retry for 8 s and hide the cause.

    Args:
        task: the name shown in the error.
        path: a folder with parquet files, or the id of a data set on the hub.

    Raises:
        UserError: the folder has none, or neither the hub nor the local cache has the data set.
    """
    if path.startswith((".", "/", "~")) or (path and Path(path).is_dir()):
        _require_folder(task, Path(path).expanduser())
    elif not REPOSITORY.fullmatch(path):
        raise UserError(
            f"task={task}: {path!r} names no data, for it is neither a folder here nor the id of a "
            f"data set on the hub: correct tasks.{task}.overrides.dataset_path."
        )
    elif not _cached(path) and not _reachable(path):
        raise UserError(_missing(task, path))


def _require_folder(task: str, folder: Path) -> None:
    point = f"point tasks.{task}.overrides.dataset_path at the data"
    try:
        kind = folder.stat().st_mode
        found = stat.S_ISDIR(kind) and any(folder.rglob("*.parquet"))
        found = found and os.access(folder, os.R_OK | os.X_OK)
    except FileNotFoundError:
        raise UserError(f"task={task}: {folder} is not here: build it, or {point}.") from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"task={task}: {folder} cannot be read ({said}): {point}.") from error
    if not stat.S_ISDIR(kind):
        raise UserError(f"task={task}: {folder} is a file: name the folder of the data set.")
    if not found:
        raise UserError(f"task={task} has no parquet file under {folder}: build it, or {point}.")


def _missing(task: str, repository: str) -> str:
    return (
        f"task={task} needs the data set {repository} from the Hugging Face hub, which is not in "
        "the local cache and cannot be reached: connect, log in if it is private, or choose a task "
        "that needs no network, such as mmbench_mini, ruler_mini or longbench_mini."
    )


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
