"""Says within a second, in one sentence, when a data set on the hub cannot be had.

Knows the hub client only; must not load any data.
"""

from multiprocessing.pool import ThreadPool
from pathlib import Path

from harness.errors import UserError

PATIENCE = 0.8  # seconds for the one question to the hub


def require_dataset(task: str, path: str) -> None:
    """Check that a task's data set is there: lmms-eval would retry for 8 s and hide the cause.

    Args:
        task: the name shown in the error.
        path: a folder with parquet files, or the id of a data set on the hub.

    Raises:
        UserError: the folder has none, or neither the hub nor the local cache has the data set.
    """
    if path.startswith((".", "/", "~")) or Path(path).is_dir():
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
