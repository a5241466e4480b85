"""How many processes answer a run: `workers=auto`, `workers=2`, or `workers=ray` for one a device.

Must not know how they are started.
"""

from typing import Any

from harness.errors import UserError
from harness.settings.bounds import at_most

AUTO, RAY = "auto", "ray"
MOST = 10_000
MANY = 8  # processes that auto starts at most
ROWS = 40  # rows that are worth starting another process for
OWN = 1 << 30  # bytes that a process takes without its model
COPIES = 3  # of the weights' bytes: read in half precision, computed with in float32
SHARE = 0.5  # of the free memory, which others take of as well


def check_workers(workers: Any, address: str | None, device: str) -> None:
    """UserError for what is no number of workers, or a device that they cannot all have."""
    if workers in (None, AUTO):
        if address is not None:
            raise UserError("ray.address joins a cluster of workers: give workers=ray with it.")
        return
    whole = isinstance(workers, int) and not isinstance(workers, bool) and workers >= 1
    if workers != RAY and not whole:
        raise UserError(
            f"workers={workers} is no number of processes: give auto, a whole number from 1, or "
            "workers=ray for one a GPU."
        )
    if whole:
        at_most("workers", workers, MOST)
    if device.startswith("cuda:"):
        raise UserError(f"device={device} is one GPU and each worker takes its own: device=cuda.")
    if address is not None and device == "auto":
        raise UserError(
            "ray.address with device=auto leaves open what the workers have: give device=cuda or "
            "device=cpu."
        )


def count_of(workers: Any, devices: int, kind: str) -> int:
    """How many to start where there are so many GPUs, or CPU slots.

    Raises:
        UserError: there are fewer.
    """
    name = "GPUs" if kind == "cuda" else "CPU slots"
    wanted = max(devices, 1) if workers == RAY else int(workers)
    if wanted > devices:
        raise UserError(
            f"workers={workers} needs {wanted} {name} and Ray has {devices}: give fewer."
        )
    return wanted


def through_ray(workers: Any, address: str | None, kind: str) -> bool:
    """Whether Ray starts them: on GPUs, which it tells apart, on a cluster, where it is named."""
    asked = workers not in (None, AUTO)
    return workers == RAY or address is not None or (asked and kind == "cuda")


def here(workers: Any, kind: str, cores: int, rows: int, weights: int | None, free: int) -> int:
    """How many processes of this machine answer so many rows without Ray.

    weights: bytes of the checkpoint's files, None where they are not here. free: bytes of memory.
    `auto` takes one on a GPU, and on a CPU as many as have a core, rows and memory each.
    """
    if workers != AUTO:
        return 1 if workers is None else int(workers)
    if kind != "cpu" or weights is None:
        return 1
    fitting = int(SHARE * free) // (OWN + COPIES * weights)
    return max(1, min(MANY, cores, rows // ROWS, fitting))


def share_of(cores: int, workers: int) -> int:
    """CPU threads that each worker may take where nothing is set: an even share."""
    return max(1, cores // workers)
