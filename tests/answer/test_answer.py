from dataclasses import replace

import pandas as pd

from harness.report import answer, answer_tables, plots
from harness.report.headline import headline
from harness.report.rulings import WORDS
from tests.answer.conftest import study_samples
from tests.answer.studies import WHOLE, study, whole


def test_an_inert_contrast_is_read_as_unable_to_tell():
    lost = {(name, 0.9): 30 for name in ("restkv", "restkv_avg", "restkv_nospatial")}
    samples = study_samples(lost, adaptive_active=0.0)
    factors = {
        "restkv": {"temporal": "ema", "spatial": "adaptive"},
        "restkv_avg": {"temporal": "ema", "spatial": "avg"},
        "restkv_nospatial": {"temporal": "ema", "spatial": "none"},
    }
    one = study(samples, factors=factors)
    table = answer_tables.ablation(one.ablation)
    line = next(line for line in table if "adaptive - avg" in line)
    assert "cannot tell: the adaptive window was never at work" in line
    other = next(line for line in table if "avg - none" in line)
    assert "no effect shown" in other


def test_every_figure_of_the_tables_is_that_of_the_frames():
    one = whole()
    text = answer.text(one).replace("\\", "")
    for _, row in one.comparisons.iterrows():
        numbers = (row["difference"], row["difference_low"], row["difference_high"])
        shown = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(round(100 * v, 1) + 0.0 for v in numbers))
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['method']} |"))
        assert shown in line
    for _, row in one.verdicts.iterrows():
        assert f"**{WORDS[row['verdict']]}**" in text
        numbers = (row["difference"], row["difference_low"], row["difference_high"])
        shown = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(round(100 * v, 1) + 0.0 for v in numbers))
        assert f"| {shown} |" in text.replace("\N{MINUS SIGN}", "-").replace(
            "\N{NO-BREAK SPACE}", " "
        )


def test_the_window_weights_are_a_table():
    place = {"model": "tiny", "task": "mini", "protocol": "replay"}
    fell = pd.DataFrame(
        [
            {**place, "method": "restkv", "segment": "question", "share": 0.25},
            {**place, "method": "restkv", "segment": "template", "share": 0.75},
            {**place, "method": "snapkv", "segment": "question", "share": 1.0},
        ]
    )
    text = answer.text(replace(whole(), weights=fell))
    assert "| method | question | template |" in text
    assert "| restkv | 25.0 | 75.0 |" in text
    assert "| snapkv | 100.0 | 0.0 |" in text


def test_hostile_names_stay_text():
    hostile = "<script>alert(1)</script>|x"
    text = answer.text(replace(whole(), name=hostile, told=(hostile,)))
    assert "<script>" not in text
    assert "\\|x" in text


def test_it_ends_with_the_command_that_reproduces_it():
    one = replace(whole(), provenance={"command": "evictbench limit=3"})
    assert "```\nevictbench limit=3\n```" in answer.text(one)


def test_it_ends_with_what_the_command_ran_on():
    versions = {"python": "3.11.7", "torch": "2.13.0+cpu", "evictbench": "0.1.0", "source": "ab12"}
    found = {"software": versions, "computed on": "cpu, float32, x86_64, 2 cores"}
    last = answer.text(replace(whole(), provenance=found)).rstrip().splitlines()[-1]
    assert last == (
        "With python 3.11.7, torch 2.13.0+cpu, evictbench 0.1.0 (source ab12), on cpu, float32, "
        "x86_64, 2 cores."
    )


def test_a_command_with_a_fence_of_its_own_stays_inside():
    text = answer.text(replace(whole(), provenance={"command": "a '```b'"}))
    assert "````\na '```b'\n````" in text


def test_the_same_study_gives_the_same_text():
    assert answer.text(whole()) == answer.text(study(study_samples(WHOLE)))


def test_layers_that_stay_whole_are_told_with_the_bytes_that_are_kept():
    """A model like Gemma 3: at 90 % most of its cache is still there."""
    lost = {("random", 0.9): 200, ("restkv", 0.9): 60}
    one = study(study_samples(lost, cache_bytes=19_904, full_cache_bytes=25_856))
    told = "of all bytes of the cache a cell keeps 77.0 % at 0.9"
    assert told in headline(one)[-1]
    assert told in answer.text(one)
    (place,) = set(plots.placed(one.cells)["evicted"].round(3))
    assert place == 0.230
    plain = study(study_samples(lost))
    assert "stay whole" not in answer.text(plain)
    assert set(plots.placed(plain.cells)["evicted"]) == {0.9}


def test_centroids_of_one_method_are_no_layers_that_stay_whole():
    """Stored in codes a short prompt takes more than its entries; beside it others say what is."""
    samples = study_samples({("random", 0.9): 200, ("restkv", 0.9): 60})
    one = samples["method"].eq("random") & samples["ratio"].eq(0.9)
    samples.loc[one, "cache_bytes"] = 3 * samples["full_cache_bytes"] // 10
    assert "stay whole" not in answer.text(study(samples))
