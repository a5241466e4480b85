"""The run that is seen while a sweep goes on, read back from its file."""

from pathlib import Path

import pytest

from harness import tracking
from tests.tracking.conftest import read


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("live")
    said = {"project": "evictbench", "group": "sweep"}
    with tracking.live(folder, "offline", 3, pause=0, **said) as log:
        log(1, {"mini/full": 1.0, "mini/restkv/0.9": 0.5})
        log(2, {"mini/full": 1.0, "mini/restkv/0.9": 0.25})
    first = set((folder / "wandb").glob("offline-run-*"))
    with tracking.live(folder, "offline", 3, pause=1000, **said) as log:
        for rows in (1, 2, 3):  # the first and the last
            log(rows, {})
    return folder, [*first, *(set((folder / "wandb").glob("offline-run-*")) - first)]


def test_points_hold_rows_rate_and_scores(points):
    first, second = read(points[1][0]).history()
    assert (first["rows"], first["rows_left"], second["rows_left"]) == (1, 2, 1)
    assert 0 < second["rows_per_minute"] < 120 / 1e-6
    assert (first["so_far/mini_restkv_0_9"], second["so_far/mini_restkv_0_9"]) == (0.5, 0.25)
    head = read(points[1][0]).head()
    assert (head.display_name, head.job_type, head.run_group) == ("sweep live", "live", "sweep")


def test_points_keep_a_pause(points):
    assert [point["rows"] for point in read(points[1][1]).history()] == [1, 3]
