"""Every test here runs Triton's kernels, natively or interpreted, on memory full of NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from methods import kernels


@pytest.fixture(autouse=True)
def poisoned_triton() -> Iterator[None]:
    """torch.empty gives NaN, and a kernel is an error away from running as plain torch."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what is not initialised
    assert torch.empty(3).isnan().all()
    with kernels.using("triton"):
        yield
    torch.use_deterministic_algorithms(before)
