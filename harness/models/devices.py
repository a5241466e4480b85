"""The device, the dtype and the threads that a model runs with.

Must not know model folders or prompts.
"""

from __future__ import annotations

import glob
import os
import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALL = 50_000_000  # parameters


def use_threads(loaded: LoadedModel, count: int | str) -> None:
    """Set torch's CPU threads: a number, or `auto`, which takes one for small models on the CPU.

    Their operations are too short to share: threads would wait for one another most of the time,
    and on a busy machine for the scheduler as well.
    """
    if count == "auto":
        size = sum(p.numel() for p in loaded.model.parameters())
        if loaded.device.type == "cpu" and size < _SMALL:
            torch.set_num_threads(1)
    else:
        torch.set_num_threads(int(count))


def device_of(name: str) -> torch.device:
    """The device that is meant; ValueError, one sentence, for one that is not there."""
    if name == "auto":
        if why := unusable():
            raise ValueError(f"{why}, or give device=cpu.")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is unknown; give auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} is not supported; give auto, cpu, cuda or cuda:N.")
    present = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= present:
        raise ValueError(
            f"device={name!r} is not there ({present} CUDA devices found); give auto or cpu."
        )
    return device


def unusable() -> str | None:
    """That torch cannot use the NVIDIA GPU of this machine, why, and what to do: a clause.

    None where it can, where there is none, and where CUDA_VISIBLE_DEVICES hides it.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    if torch.cuda.is_available() or hidden or not glob.glob("/dev/nvidia[0-9]*"):
        return None
    why = "no reason is known"
    try:
        torch.cuda.init()
    except Exception as error:
        said = str(error)
        coded = re.search(r"Error \d+: .*", said)
        why = coded[0] if coded else said.split(". ")[0].rstrip(".")
    return (
        f"there is an NVIDIA GPU and torch {torch.__version__} cannot use it ({why}); update the "
        "driver, install a torch that was built for it"
    )


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype that is meant; ValueError, one sentence, for one that is not known."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ValueError(f"dtype={name!r} is unknown; give auto or one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]
