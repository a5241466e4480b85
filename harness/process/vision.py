"""torchvision from PyPI beside a CPU build of torch, which lacks the operators it was built with.

Image processors need none of these, but without their names torchvision does not import. Imports
nothing that takes time until torchvision is imported. `scripts/setup.sh` copies this file where
every program of the virtual environment starts with it.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[Any] = []  # a library's operators go with it


class _Finder(MetaPathFinder):
    """Names the operators right before the first import of torchvision."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            if mismatched():
                name_operators()


def mismatched() -> bool:
    """Whether torchvision was built for another torch than the one that is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        torch, vision = version("torch"), version("torchvision")
    except PackageNotFoundError:
        return False
    return torch.endswith("+cpu") and not vision.endswith("+cpu")


def name_operators() -> None:
    """Make the operators known, without what would compute them."""
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for one in OPERATORS:
        library.define(one)
    _kept.append(library)


def watch() -> None:
    """Wait for the import of torchvision, if it did not happen."""
    known = any(isinstance(one, _Finder) for one in sys.meta_path)
    if "torchvision" not in sys.modules and not known:
        sys.meta_path.insert(0, _Finder())
