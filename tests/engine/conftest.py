"""Tiny random models of real architectures, built once a session."""

from __future__ import annotations

import pytest
from tiny_models import BUILDERS, wrap

from harness.models.loaded import LoadedModel


@pytest.fixture(scope="session")
def loaded_models() -> dict[str, LoadedModel]:
    return {kind: wrap(build()) for kind, build in BUILDERS.items()}
