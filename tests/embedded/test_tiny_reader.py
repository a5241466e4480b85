"""The embedded model reads: floors of the full cache on a part of the text benchmarks, and what
eviction does to them."""

from statistics import fmean

import pandas as pd
import pytest

import methods
from harness.embedded import HOME, TINY_VLM, longbench_prompts
from harness.engine import Branch, Engine, Generation
from harness.models import loading
from harness.scoring.longbench import metrics
from harness.scoring.ruler import prompts
from harness.scoring.ruler.metrics import process_results_all

LONGBENCH = {
    "passage_retrieval": metrics.retrieval,
    "few_shot": metrics.classification_first_line,
    "key_value": metrics.qa_f1,
}


@pytest.fixture(scope="module")
def engine():
    return Engine(loading.load(str(TINY_VLM), device="cpu"))


def rows(family, name, length=None, every=1):
    frame = pd.read_parquet(HOME / family / name / "test-00000-of-00001.parquet")
    chosen = frame if length is None else frame[frame["max_length"] == length]
    return [row for _, row in chosen.iloc[::every].iterrows()]


def answers(engine, messages, branches=(None,)):
    """One text a branch; a branch is None for the full cache or a method's name at ratio 0.9."""
    cells = [Branch() if b is None else Branch(methods.build(b), ratio=0.9) for b in branches]
    prompt = engine.loaded.prompt(messages)
    return [result.text for result in engine.run(prompt, cells, Generation(8))]


def ruler_score(engine, asked):
    scores = []
    for row in asked:
        (said,) = answers(engine, prompts.doc_to_messages(row))
        scores.append(process_results_all(row, [said])["string_match"])
    return fmean(scores)


@pytest.mark.parametrize(("length", "floor"), [(256, 0.9), (768, 0.7)])
def test_it_finds_a_single_needle(engine, length, floor):
    assert ruler_score(engine, rows("ruler_mini", "niah_single", length, every=2)) >= floor


@pytest.mark.parametrize("name", ["niah_multikey", "vt"])
def test_it_does_the_other_ruler_tasks(engine, name):
    assert ruler_score(engine, rows("ruler_mini", name, every=9)) >= 0.6


def test_it_says_the_needle_of_the_grid_exactly(engine):
    asked = rows("needle_mini", "needle", every=11)
    said = [answers(engine, prompts.doc_to_messages(row))[0] for row in asked]
    assert fmean(text == row["outputs"][0] for text, row in zip(said, asked, strict=True)) >= 0.6


@pytest.mark.parametrize("name", LONGBENCH)
def test_it_does_the_longbench_tasks(engine, name):
    scores = []
    for row in rows("longbench_mini", name, every=3):
        said = answers(engine, longbench_prompts.doc_to_messages(row))
        scores.append(next(iter(LONGBENCH[name](row, said).values())))
    assert fmean(scores) >= 0.6


def test_methods_that_look_at_attention_keep_the_needle(engine):
    """At nine tenths evicted, random choice and the last tokens lose most needles among others."""
    names = ("snapkv", "restkv", "h2o", "tova", "random", "streaming_llm")
    hits = {name: [] for name in names}
    for row in rows("ruler_mini", "niah_multikey", 256, every=2):
        for name, said in zip(
            names, answers(engine, prompts.doc_to_messages(row), names), strict=True
        ):
            hits[name].append(process_results_all(row, [said])["string_match"])
    kept = min(fmean(hits[name]) for name in names[:4])
    lost = max(fmean(hits[name]) for name in names[4:])
    assert kept >= 0.8
    assert lost <= 0.5
