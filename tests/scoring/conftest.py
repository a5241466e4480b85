"""Where generated data goes in a test."""

from pathlib import Path

import pytest

from harness.scoring import sources


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no package that holds essays."""
    monkeypatch.setenv("EVICTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_packaged", lambda name: None)
    return tmp_path / "cache"
