import json

import pytest
import torch
from transformers import MistralConfig

from harness.engine.cache import CompactLayer
from scripts import bench_claims

CONFIG = MistralConfig(**bench_claims.SHAPES["small"])


def test_scoring_of_the_window_grows_with_the_prompt_and_h2o_with_its_square():
    window = [bench_claims.operations("restkv", n, CONFIG, 64) for n in (512, 2048)]
    assert window[1] / window[0] == pytest.approx(4, rel=0.02)
    every = [bench_claims.operations("h2o", n, CONFIG, 64) for n in (512, 2048)]
    assert every[1] / every[0] > 8
    heads, dim, rows = 8, 32, 32
    # Logits of the window, the output of its weighted mean, and a head's factor of every value.
    least = 2 * heads * 2048 * dim * (rows + 1 + dim)
    assert window[1] == pytest.approx(least, rel=0.03)


def test_without_a_gpu_only_operations_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "rows.jsonl"
    assert bench_claims.main(["--lengths", "128", "256", "--out", str(path)]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(row["length"], row["method"]) for row in rows} == {
        (128, "restkv"), (128, "h2o"), (256, "restkv"), (256, "h2o"),
    }  # fmt: skip
    assert all(row["score_flops"] > 0 and "ttft_ms" not in row for row in rows)
    assert "Nothing was timed" in capsys.readouterr().out
    before = path.read_text()
    assert bench_claims.main(["--lengths", "256", "--out", str(path)]) == 0
    assert path.read_text() == before  # rows are replaced, not added


def test_times_are_of_every_method(tmp_path, monkeypatch):
    """The full cache decodes through the same attention as those that are evicted."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    looked, attend = set(), CompactLayer.attend

    def noted(layer, *how, **rest):
        looked.add(int(layer.tiles.counts.max()) >= 96)
        return attend(layer, *how, **rest)

    monkeypatch.setattr(CompactLayer, "attend", noted)
    path = tmp_path / "rows.jsonl"
    asked = ["--times", "--lengths", "96", "--budget", "24", "--tokens", "2", "--runs", "1"]
    assert bench_claims.main([*asked, "--out", str(path)]) == 0
    rows = {row["method"]: row for row in map(json.loads, path.read_text().splitlines())}
    timed = {name for name in rows if name != "h2o"}
    assert timed == {
        *bench_claims.METHODS, *(f"{method}+flexprefill" for method in bench_claims.METHODS)
    }  # fmt: skip
    for name in timed:
        assert rows[name]["ttft_ms"] > 0
        assert rows[name]["peak_bytes"] is None
        assert rows[name]["device"].startswith("cpu")
    assert looked == {True, False}


@pytest.mark.parametrize("wrong", [["--lengths", "10"], ["--runs", "0"]])
def test_senseless_sizes_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        bench_claims.main(wrong)
    assert "error:" in capsys.readouterr().err
