"""Whole runs of the published code, case by case, through the engine."""

import pytest

from tests.engine import golden_e2e as golden


@pytest.mark.parametrize(
    ("folder", "case"),
    [
        pytest.param(folder, case, id=f"{folder}-{case['id']}")
        for folder in golden.CHECKS
        for case in golden.whole_runs(folder)
    ],
)
def test_run_matches_the_published_code(folder, case):
    golden.CHECKS[folder](case)


def test_every_stored_run_is_checked():
    counts = {folder: len(golden.whole_runs(folder)) for folder in golden.CHECKS}
    assert counts == {"kvpress_e2e": 22, "lacache_e2e": 3, "tova": 3}
