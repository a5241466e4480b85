import pandas as pd
import pytest

from harness.report import answer, verdict_tables
from harness.report.headline import headline
from tests.answer.conftest import study_samples
from tests.answer.studies import WHOLE, study, whole


def test_the_verdict_is_two_plain_sentences():
    one = whole()
    assert headline(one) == (
        "ReST-KV keeps accuracy (within 2 points) at 70 % eviction and loses 20.0 points at 90 %.",
        "Its smoothing does not help: it costs 20.0 points at 90 % eviction and makes no "
        "difference (within 2 points) at 70 %.",
    )
    assert one.question == (
        "Does ReST-KV's spatial-temporal smoothing keep mini accuracy when more than half of "
        "tiny's KV cache is evicted?"
    )


def test_a_plan_that_was_changed_makes_the_verdict_exploratory():
    told = {"registered": False, "registration": "The plan was changed."}
    one = study(study_samples(WHOLE), **told)
    assert headline(one)[0].startswith("Exploratory: ReST-KV keeps")
    assert "The plan was changed." in answer.text(one)


def test_what_is_undecided_is_said_behind_what_is_decided():
    lost = {("random", 0.7): 200, ("restkv", 0.7): 6, ("restkv", 0.9): 60}
    assert headline(study(study_samples(lost))) == (
        "ReST-KV loses 20.0 points of accuracy at 90 % eviction. Cannot tell at 70 %: neither a "
        "loss of more than 2 points nor its absence is shown: -2.0 points [-4.3, -0.2].",
    )


def test_several_losses_are_a_range():
    lost = {("random", 0.7): 200, ("restkv", 0.7): 30, ("restkv", 0.9): 60}
    (said,) = headline(study(study_samples(lost)))
    assert said == "ReST-KV loses 10.0 to 20.0 points of accuracy at 70 and 90 % eviction."


def test_smoothing_that_helps_is_said_to():
    lost = {("random", 0.9): 200, ("restkv", 0.9): 0, ("restkv_neither", 0.9): 60}
    kept, effect = headline(study(study_samples(lost, adaptive_active=0.2)))
    assert kept == "ReST-KV keeps accuracy (within 2 points) at 90 % eviction."
    assert effect == (
        "Its smoothing helps: it adds 20.0 points at 90 % eviction. Its adaptive window was at "
        "work in 20.0 % of the heads."
    )
    _, inert = headline(study(study_samples(lost, adaptive_active=0.0)))
    assert inert.endswith("Its adaptive window was never at work: this tests a fixed pool.")


def test_where_smoothing_cannot_be_told_the_window_is_still_spoken_of():
    """A model that sees no better than with a blank image: the window is what was measured."""
    lost = {("random", 0.9): 200, ("restkv", 0.9): 150, ("restkv_neither", 0.9): 150}
    samples = study_samples(lost, adaptive_active=0.0)
    blind = samples["method"].eq("full") & samples["control"].ne("blank_image")
    blank = samples["control"].eq("blank_image")
    samples.loc[blind, ["correct", "parsed"]] = samples.loc[blank, ["correct", "parsed"]].values
    kept, effect = headline(study(samples))
    assert "the model is not shown to use the image" in kept
    assert effect.startswith("Cannot tell what its smoothing does at 90 % eviction: the model is ")
    assert effect.endswith(" Its adaptive window was never at work: this tests a fixed pool.")
    _, effect = headline(study(samples.assign(adaptive_active=0.125)))
    assert effect.endswith("). Its adaptive window was at work in 12.5 % of the heads.")


def test_vacuous_protocols_cannot_tell():
    one = study(study_samples(WHOLE, exposed_tokens=0))
    first, second = headline(one)
    assert first.startswith("Cannot tell whether ReST-KV keeps accuracy at 70 and 90 % eviction: ")
    assert second.startswith("Cannot tell what its smoothing does at 70 and 90 % eviction: ")
    assert "no scored token came from the evicted cache" in first
    text = answer.text(one)
    assert "cannot answer the question" in text  # under what the data does not say
    assert text.count("- At 70 and 90 % eviction: Vacuous") == 2  # a reason once for each table


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ({}, "holds no compressed cell"),
        ({("snapkv", 0.9): 0}, "ReST-KV, which the question is about, was not run"),
        ({("restkv", 0.3): 0}, "at no setting that evicts more than 50 %"),
    ],
)
def test_what_was_not_run_is_said(lost, why):
    one = study(study_samples(lost))
    (said,) = headline(one)
    assert said.startswith("Cannot tell whether ReST-KV keeps ")
    assert why in said
    assert said in answer.text(one).replace("\\", "")


def test_one_method_only_is_judged_and_said_to_have_no_control():
    one = study(study_samples({("restkv", 0.9): 0}))
    assert "Cannot tell whether ReST-KV keeps accuracy at 90 % eviction: random" in answer.text(one)
    assert "random was not run to its end" in answer.text(one)
    assert len(headline(one)) == 1  # nothing about a smoothing that was not compared


@pytest.mark.parametrize("method", ["snapkv", "mine"])
def test_the_question_is_about_the_method_of_the_plan(method):
    lost = {("random", 0.9): 200, (method, 0.9): 0, ("restkv", 0.9): 0, ("restkv_neither", 0.9): 0}
    plan = {"resamples": 199, "method": method, "above": 0.6}
    one = study(study_samples(lost), plan=plan, titles={"snapkv": "SnapKV"})
    name = "SnapKV" if method == "snapkv" else "mine"
    assert one.question == (
        f"Does {name} keep mini accuracy when more than 60 % of tiny's KV cache is evicted?"
    )
    kept, effect = headline(one)
    assert kept == f"{name} keeps accuracy (within 2 points) at 90 % eviction."
    assert effect.startswith("Smoothing (restkv against restkv_neither) makes no difference")


def test_a_task_with_another_score_is_named_so():
    samples = study_samples(WHOLE).assign(task="ruler_vt", group="ruler_mini", metric="ruler_match")
    one = study(samples)
    assert "keep the score on ruler_mini when" in one.question
    assert "ReST-KV keeps its score (within 2 points)" in headline(one)[0]


def test_a_question_of_its_own_puts_the_contrasts_first():
    """As experiment=budgets asks it."""
    pair = {"label": "snapkv_pyramid", "against": "snapkv", "called": "a pyramid"}
    plan = {"resamples": 199, "question": "Does {tasks} on {model} gain?", "contrasts": [pair]}
    lost = {("random", 0.9): 200, ("random", 0.7): 200, ("restkv", 0.9): 0, ("snapkv", 0.9): 0}
    lost |= {("snapkv_pyramid", 0.9): 60, ("snapkv", 0.7): 0, ("snapkv_pyramid", 0.7): 0}
    one = study(study_samples(lost), plan=plan, titles={"snapkv": "SnapKV", "restkv": "ReST-KV"})
    assert one.question == "Does mini on tiny gain?"
    effect, kept = headline(one)
    assert effect == (
        "A pyramid (snapkv_pyramid against SnapKV) does not help: it costs 20.0 points at 90 % "
        "eviction and makes no difference (within 2 points) at 70 %."
    )
    assert kept.startswith("ReST-KV keeps accuracy")
    alone = study(study_samples({("random", 0.9): 200, ("restkv", 0.9): 0}), plan=plan)
    assert headline(alone)[0] == (
        "Cannot tell: no pair that the question is about was run at a setting that evicts more "
        "than 50 %."
    )
    plan["contrasts"] = []
    without = study(study_samples({("random", 0.9): 200, ("restkv", 0.9): 0}), plan=plan)
    assert [said.partition(" at ")[0] for said in headline(without)] == [
        "ReST-KV keeps accuracy (within 2 points)"
    ]


def test_a_pair_is_no_different_only_where_the_control_loses():
    pair = {("restkv", 0.9): 0, ("restkv_neither", 0.9): 0}
    for control, effect in (({("random", 0.9): 200}, "no difference"), ({}, "cannot tell"),
                            ({("random", 0.9): 0}, "cannot tell")):  # fmt: skip
        one = study(study_samples(pair | control))
        assert one.contrasts["effect"].tolist() == [effect]
    assert "not even random is shown to lose" in headline(one)[1]


def test_a_pair_that_keeps_different_amounts_is_not_compared():
    lost = {("random", 0.9): 200, ("restkv", 0.9): 0, ("restkv_neither", 0.9): 60}
    samples = study_samples(lost)
    more = samples["method"].eq("restkv")
    samples.loc[more, "kept_tokens"] = samples.loc[more, "kept_tokens"] * 3
    (row,) = study(samples).contrasts.to_dict("records")
    assert row["effect"] == "cannot tell"
    assert "keep different amounts" in row["reason"]


def test_the_first_label_decides_which_settings_are_asked():
    lost = {("random", 0.4): 200, ("restkv", 0.4): 0, ("restkv_neither", 0.4): 0}
    samples = study_samples(lost)
    other = samples["method"].eq("restkv_neither")
    samples.loc[other, "kept_tokens"] = 1
    assert study(samples).contrasts.empty


def test_what_only_the_correction_undoes_is_said():
    lost = {("random", 0.9): 200, ("restkv", 0.9): 7, ("restkv_neither", 0.9): 0}
    extra = [{"label": f"x{i}", "against": "restkv_neither", "called": "x"} for i in range(6)]
    pairs = [{"label": "restkv", "against": "restkv_neither", "called": "smoothing"}, *extra]
    lost |= {(f"x{i}", 0.9): 0 for i in range(6)}
    plan = {"resamples": 199, "contrasts": pairs, "margin": 0.001}
    one = study(study_samples(lost), plan=plan).contrasts.set_index("label").loc["restkv"]
    assert one["p"] <= 0.05 < one["p_holm"]
    assert one["effect"] == "cannot tell"
    assert "not after Holm's correction" in one["reason"]
    assert "may raise or lower" not in one["reason"]


def test_a_reason_names_its_task_where_there_are_several():
    other = study_samples({("random", 0.9): 0, ("restkv", 0.9): 0}).assign(task="second")
    samples = pd.concat([study_samples({("random", 0.9): 200, ("restkv", 0.9): 0}), other])
    one = study(samples.reset_index(drop=True))
    notes = verdict_tables.kept(one, one.verdicts).notes
    assert any(note.startswith("second, at 90 % eviction: Not even random") for note in notes)
    assert headline(one)[0].endswith(
        "Cannot tell in 1: not even random is shown to lose more than 2 points (+0.0)."
    )


def test_a_task_without_a_verdict_is_still_one_of_several():
    other = study_samples({("restkv", 0.3): 0}).assign(task="second")
    samples = pd.concat([study_samples({("random", 0.9): 200, ("restkv", 0.9): 0}), other])
    (said,) = headline(study(samples.reset_index(drop=True)))
    assert said.startswith("Of 1 settings of task and eviction, ReST-KV keeps accuracy")


def test_one_point_is_one():
    samples = study_samples({("random", 0.9): 200, ("restkv", 0.9): 0}, questions=1000)
    (said,) = headline(study(samples, plan={"resamples": 199, "margin": 0.01}))
    assert said == "ReST-KV keeps accuracy (within 1 point) at 90 % eviction."


def test_holding_a_budget_cannot_show_on_answers_of_one_token():
    pair = {"label": "h2o", "against": "h2o_grow", "called": "holding", "varies": ["decode"]}
    plan = {"resamples": 199, "contrasts": [pair]}
    lost = {("random", 0.9): 200, ("h2o", 0.9): 0, ("h2o_grow", 0.9): 0}
    for tokens, effect in ((1, "cannot tell"), (3, "no difference")):
        one = study(study_samples(lost, exposed_tokens=tokens), plan=plan)
        assert one.contrasts["effect"].tolist() == [effect]


def test_many_tasks_are_counted():
    other = study_samples({("random", 0.9): 200, ("restkv", 0.9): 60}).assign(task="second")
    samples = pd.concat([study_samples({("random", 0.9): 200, ("restkv", 0.9): 0}), other])
    (said,) = headline(study(samples.reset_index(drop=True)))
    assert said == (
        "Of 2 settings of task and eviction, ReST-KV keeps accuracy (within 2 points) in 1 and "
        "loses more in 1 (the most: 20.0 points on second at 90 % eviction)."
    )


def test_budgets_are_told_in_tokens():
    lost = {("random", 0.0): 200, ("restkv", 0.0): 0}
    samples = study_samples(lost, budget=16)
    samples["ratio"] = samples["ratio"].where(samples["budget"].isna())
    (said,) = headline(study(samples))
    assert said == "ReST-KV keeps accuracy (within 2 points) with 16 kept tokens."
