"""The benchmark of decoding steps compares equal work."""

import pytest
import torch

from harness.embedded import TINY_VLM
from harness.engine import Branch
from harness.engine.passes import forward
from scripts import bench_steps as bench


@pytest.fixture(scope="module")
def engine():
    return bench.build(str(TINY_VLM))


def test_both_sides_of_a_ratio_are_timed(engine, capsys):
    rows = bench.against_bare(engine, 60, 2, 2)
    assert [row["label"].count("26 cells") for row in rows] == [1, 0]
    assert all(len(row["ratios"]) == 2 and min(row["ratios"]) > 0 for row in rows)
    assert "1 cells against transformers at 60 entries each" in capsys.readouterr().out


def test_the_plain_batch_reads_as_many_entries_as_it_says(engine, monkeypatch):
    seen = []

    def note(model, layout, cache, positions, **inputs):
        seen.append((cache.get_seq_length(), tuple(positions.shape), int(positions[0, 0])))
        return forward(model, layout, cache, positions, **inputs)

    monkeypatch.setattr(bench, "forward", note)
    bench.bare_step(engine, 3, 40, 2)
    assert seen == [(40, (3, 1), 40), (41, (3, 1), 41)]


def test_every_cell_decodes_as_many_tokens_as_are_counted(engine, monkeypatch):
    found = []
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda *a: found.append(run(*a)) or found[-1])
    bench.step(engine, bench.random_prompt(engine, 30), [Branch(), *bench.held("hold", ["h2o"])], 3)
    assert [len(result.token_ids) for result in found[0]] == [4] * 6
    assert bench.random_prompt(engine, 30).modality.eq(torch.zeros(30)).all()
