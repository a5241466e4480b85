"""What is refused, and what a failure leaves behind."""

import os
from dataclasses import replace

import pytest
import wandb

from harness import tracking
from harness.errors import UserError
from tests.tracking import studies
from tests.tracking.conftest import KEY, read


def log(study, folder, mode="offline", **more):
    return tracking.log(study, studies.image, {}, folder, mode, **{"group": "g"} | more)


def test_online_without_network_fails_at_once(study, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    before = dict(os.environ)
    with pytest.raises(UserError, match=r"online cannot reach http://127\.0\.0\.1:9") as caught:
        log(study, tmp_path, "online")
    assert "wandb.mode=offline" in str(caught.value)
    assert dict(os.environ) == before
    assert not list(tmp_path.rglob("*.wandb"))


def test_disabled_writes_nothing_and_other_modes_are_refused(study, tmp_path):
    assert log(study, tmp_path, "disabled") == []
    with pytest.raises(UserError, match="'sometimes' is unknown; choose one of offline, online"):
        log(study, tmp_path, "sometimes")
    assert list(tmp_path.iterdir()) == []


def test_a_project_that_wandb_refuses_is_a_sentence(study, tmp_path):
    with pytest.raises(UserError, match=r"wandb\.mode=offline failed .*'a/b'.*mode=disabled\.$"):
        log(study, tmp_path, project="a/b")
    assert wandb.run is None


def test_a_failure_ends_its_run_as_failed_and_keeps_the_earlier_ones(study, tmp_path):
    def image(task, row):
        if task == "other":
            raise OSError("no such picture")
        return None

    alone = replace(study, cells=study.cells[study.cells["protocol"].eq("replay")])
    with pytest.raises(OSError, match="no such picture"):
        tracking.log(alone, image, {}, tmp_path, "offline", group="g" * 200)
    runs = [read(folder) for folder in sorted(tmp_path.glob("wandb/offline-run-*"))]
    codes = {run.head().display_name: [e.exit_code for e in run.of("exit")] for run in runs}
    assert codes == {"tiny mini replay": [0], "tiny other replay": [1]}
    assert {len(run.head().run_group) for run in runs} == {128}
    assert wandb.run is None
