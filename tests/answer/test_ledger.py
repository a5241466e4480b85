import json

import pandas as pd
import pytest

from harness import stats
from harness.report import ledger
from tests.answer.conftest import study_samples

NOWHERE = pd.DataFrame()


def claims(tmp_path, samples=None, bench=()):
    if bench:
        (tmp_path / "bench").mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in bench)
        (tmp_path / "bench" / "device.jsonl").write_text(lines)
    cells = NOWHERE if samples is None else stats.summarise(samples)
    means = NOWHERE if samples is None else stats.means(cells)
    table = ledger.rows(cells, means, tmp_path / "published", tmp_path / "bench")
    assert table.columns.tolist() == ledger.COLUMNS
    return table.set_index(table["claim"].str.split().str[0])


def test_nothing_measured_is_untested(tmp_path):
    table = claims(tmp_path)
    assert len(table) == 9
    assert set(table["verdict"]) == {"untested"}
    assert set(table["measured"]) == {"nothing"}
    assert table["published"].str.len().min() > 0
    assert table["command"].str.contains("evictbench|make bench|none").all()


def suite(
    group: str, wins: int, budget: int | None = 128, protocol: str = "paper", ratio: float = 0.9
) -> pd.DataFrame:
    """Three tasks of a group; ReST-KV loses 1 question where it wins and 50 where not."""
    ratio = 0.0 if budget else ratio
    parts = []
    for place in range(3):
        lost = {("restkv", ratio): 1 if place < wins else 50}
        lost |= {(rival, ratio): 20 for rival in ("snapkv", "h2o", "tova", "streaming_llm")}
        task = study_samples(lost, budget=budget).assign(task=f"{group}_{place}", group=group)
        task["protocol"] = protocol
        task["cell_key"] += str(place)
        parts.append(task)
    frame = pd.concat(parts, ignore_index=True)
    if budget is not None:
        frame["ratio"] = frame["ratio"].where(frame["budget"].isna())
    return frame


@pytest.mark.parametrize(("wins", "verdict"), [(2, "supported"), (1, "not supported")])
def test_the_best_method_is_counted_by_task(tmp_path, wins, verdict):
    row = claims(tmp_path, suite("longbench", wins)).loc["ReST-KV"]
    assert row["verdict"] == verdict
    assert f"n=128: {wins} of 3 (0 level)" in row["measured"]
    assert row["on"] == "tiny, protocol paper"


@pytest.mark.parametrize("other", [{"budget": None}, {"budget": 100}, {"protocol": "replay"}])
def test_other_settings_than_the_claims_decide_nothing(tmp_path, other):
    row = claims(tmp_path, suite("longbench", 3, **other)).loc["ReST-KV"]
    assert row["verdict"] == "untested"
    assert row["measured"].startswith("not at the claim's protocol and budgets: best alone in")


def test_a_twin_decides_nothing(tmp_path):
    row = claims(tmp_path, suite("longbench_mini", 3)).loc["ReST-KV"]
    assert row["verdict"] == "untested"
    assert row["measured"].startswith("on a small twin only: best alone in, at n=128: 3 of 3")


def test_a_tie_is_no_win(tmp_path):
    samples = suite("longbench", 3)
    samples.loc[samples["method"] == "snapkv", "correct"] = samples.loc[
        samples["method"] == "restkv", "correct"
    ].to_numpy()
    row = claims(tmp_path, samples).loc["ReST-KV"]
    assert row["verdict"] == "not supported"
    assert "0 of 3 (3 level)" in row["measured"]


@pytest.mark.parametrize(
    ("group", "budget", "wins", "verdict"),
    [
        ("ruler", 1024, 3, "in part"),  # 19 of 300 questions: 6.3 points of 15.2
        ("ruler", 1024, 0, "not supported"),
        ("ruler", 512, 3, "untested"),
        ("ruler_mini", 1024, 3, "untested"),
    ],
)
def test_the_gain_is_judged_at_the_claims_own_budget(tmp_path, group, budget, wins, verdict):
    row = claims(tmp_path, suite(group, wins, budget)).loc["RULER"]
    assert row["verdict"] == verdict
    assert f"at n={budget}" in row["measured"]
    assert ("+6.3" if wins else "-10.0") in row["measured"]


FIVE = ("llama_3_1_8b", "llama_2_7b", "mistral_7b", "gemma_7b", "qwen2_5_7b")


@pytest.mark.parametrize(
    ("models", "lost", "verdict", "said"),
    [
        (FIVE, (), "supported", "n=128: 5 of 5"),
        (FIVE, ("gemma_7b",), "in part", "n=128: 4 of 5"),
        (FIVE[:2], (), "in part", "n=128: 2 of 2"),
        (FIVE[:2], FIVE[:2], "not supported", "n=128: 0 of 2"),
        (("qwen3_8b",), (), "untested", "n=128: 1 of 1"),
    ],
)
def test_every_model_of_the_paper_must_be_won(tmp_path, models, lost, verdict, said):
    parts = [suite("longbench", 0 if model in lost else 3).assign(model=model) for model in models]
    row = claims(tmp_path, pd.concat(parts, ignore_index=True)).loc["Five"]
    assert (row["verdict"], said in row["measured"]) == (verdict, True)


def test_a_gain_on_another_model_decides_nothing(tmp_path):
    samples = suite("longbench", 3)
    assert claims(tmp_path, samples).loc["LongBench", "verdict"] == "untested"
    own = claims(tmp_path, samples.assign(model="llama_2_7b")).loc["LongBench"]
    assert (own["verdict"], own["on"]) == ("supported", "llama_2_7b, protocol paper")


def test_published_tables_count_and_this_runs_own_stand_for_theirs(tmp_path):
    folder = tmp_path / "published" / "old"
    folder.mkdir(parents=True)
    old = suite("longbench", 0)
    stats.summarise(old).to_parquet(folder / "cells.parquet")
    stats.means(stats.summarise(old)).to_parquet(folder / "means.parquet")
    assert "0 of 3" in claims(tmp_path).loc["ReST-KV", "measured"]
    assert "3 of 3" in claims(tmp_path, suite("longbench", 3)).loc["ReST-KV", "measured"]


def bench(
    device: str,
    length: int,
    model: str = "mistral_7b with random weights",
    budget: int = 1024,
    **figures: dict[str, float],
) -> list[dict[str, object]]:
    base = {"device": device, "model": model, "length": length, "budget": budget}
    return [{**base, "method": method, **values} for method, values in figures.items()]


def times(device="NVIDIA H100", length=131072, model="mistral_7b", budget=1024, **changed):
    rest = {"ttft_ms": 101.0, "decode_ms": 3.0, "peak_bytes": 30.0} | changed
    return bench(
        device,
        length,
        model,
        budget,
        full={"ttft_ms": 90.0, "decode_ms": 33.0, "peak_bytes": 48.0},
        snapkv={"ttft_ms": 100.0, "decode_ms": 3.0, "peak_bytes": 30.0},
        restkv=rest,
    )


def test_times_on_a_gpu_at_the_claims_length_decide(tmp_path):
    table = claims(tmp_path, bench=times())
    assert table.loc["Peak", ["measured", "verdict"]].tolist() == [
        "peak memory -37.5 % at 131,072 tokens", "supported",
    ]  # fmt: skip
    assert table.loc["Decoding", "measured"] == "11.00 times as fast as full at 131,072 tokens"
    assert table.loc["Decoding", "verdict"] == "supported"
    assert "+1.0 % against snapkv" in table.loc["Prefill", "measured"]
    assert table.loc["Prefill", "verdict"] == "supported"
    assert table.loc["Peak", "on"] == "mistral_7b, NVIDIA H100"


def test_what_falls_short_is_said(tmp_path):
    table = claims(tmp_path, bench=times(ttft_ms=110.0, decode_ms=11.0, peak_bytes=50.0))
    assert table.loc["Prefill", "verdict"] == "not supported"
    assert table.loc["Decoding", "verdict"] == "in part"
    assert table.loc["Peak", "verdict"] == "not supported"


@pytest.mark.parametrize(
    "other", [{"device": "cpu x86_64"}, {"length": 32768}, {"model": "small"}, {"budget": 64}]
)
def test_other_models_lengths_and_devices_decide_nothing(tmp_path, other):
    table = claims(tmp_path, bench=times(**other))
    for claim in ("Peak", "Decoding", "Prefill"):
        assert table.loc[claim, "verdict"] == "untested"
        assert "not the claim's model, length or kind of device" in table.loc[claim, "measured"]


@pytest.mark.parametrize(("power", "verdict"), [(1, "supported"), (2, "not supported")])
def test_growth_is_the_exponent_between_lengths(tmp_path, power, verdict):
    rows = [
        row
        for length in (1000, 4000)
        for row in bench(
            "cpu x86_64",
            length,
            restkv={"score_flops": length**power},
            h2o={"score_flops": length**2},
        )
    ]
    row = claims(tmp_path, bench=rows).loc["The"]
    assert row["verdict"] == verdict
    assert f"length^{power:.2f} for restkv, length^2.00 for h2o" in row["measured"]


def test_a_group_without_all_rivals_says_nothing(tmp_path):
    samples = suite("longbench", 3)
    row = claims(tmp_path, samples[samples["method"] != "tova"]).loc["ReST-KV"]
    assert row["verdict"] == "untested"
