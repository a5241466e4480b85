"""How many processes answer a run: `workers=2`, or `workers=ray` for one a device.

Must not know Ray.
"""

from typing import Any

from harness.errors import UserError
from harness.settings.bounds import at_most

RAY = "ray"
MOST = 10_000


def check_workers(workers: Any, address: str | None, device: str) -> None:
    """UserError for what is no number of workers, or a device that they cannot all have."""
    if workers is None:
        if address is not None:
            raise UserError("ray.address joins a cluster of workers: give workers=ray with it.")
        return
    whole = isinstance(workers, int) and not isinstance(workers, bool) and workers >= 1
    if workers != RAY and not whole:
        raise UserError(
            f"workers={workers} is no number of processes: give a whole number from 1, or "
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


def share_of(cores: int, workers: int) -> int:
    """CPU threads that each worker may take where nothing is set: an even share."""
    return max(1, cores // workers)
