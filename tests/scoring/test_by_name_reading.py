"""How any task's metrics become one answer's score, and how a judge behind them is found."""

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmms_eval.llm_judge
import pytest
import requests

from harness.errors import UserError
from harness.scoring import generic, judges


def fake(
    process: Callable[..., Any],
    *metrics: tuple[str, Callable[..., Any], bool],
    target: Any = "gold",
) -> Any:
    """A task object with these metrics: name, aggregation, whether more is better."""
    return SimpleNamespace(
        task_name="fake",
        config=SimpleNamespace(process_results=process),
        process_results=process,
        doc_to_target=lambda document: target,
        aggregation=lambda: {name: function for name, function, _ in metrics},
        higher_is_better=lambda: {name: better for name, _, better in metrics},
    )


def mean(items: list[float]) -> float:
    return sum(items) / len(items)


def hits(items: list[dict[str, str]]) -> float:
    return sum(item["said"] == item["gold"] for item in items) / len(items)


def said(document: Any, texts: list[str]) -> dict[str, Any]:
    return {"m": {"said": texts[0], "gold": "gold"}}


@pytest.mark.parametrize(
    ("aggregation", "right", "wrong"),
    [
        (hits, 1, 0),
        (lambda items: 100 * hits(items), 1, 0),  # percent
        (lambda items: hits(items) * len(items), 1, 0),  # a count
        (lambda items: hits(items) * len(items) / 1000, 1, 0),  # a sum over a known size
        (lambda items, args: hits(items), 1, 0),  # asks for lmms-eval's command line
    ],
)
def test_an_aggregation_alone_is_enough_whatever_its_unit(
    aggregation: Callable[..., Any], right: float, wrong: float
) -> None:
    task = fake(said, ("m", aggregation, True))
    for text, expected in (("gold", right), ("no", wrong)):
        assert generic.sample_score(task, {}, said({}, [text]))[0] == pytest.approx(expected)


def test_partly_right_answers_in_percent_are_shares() -> None:
    def share(document: Any, texts: list[str]) -> dict[str, Any]:
        return {"m": (texts[0], "gold")}

    def percent(items: list[tuple[str, str]]) -> float:
        return 100 * mean([len(set(text) & set(gold)) / len(set(gold)) for text, gold in items])

    task = fake(share, ("m", percent, True))
    for text, expected in (("gold", 1), ("go", 0.5), ("g", 0.25), ("x", 0)):
        assert generic.sample_score(task, {}, share({}, [text]))[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, 1), (0.25, 0.25), ({"score": 0.5, "prediction": "x"}, 0.5), ({"correct": False}, 0),
        ({"acc": {"a": 1}, "hit": 1}, 1), ({"correct": "B", "score": 1.0}, 1),
    ],
)  # fmt: skip
def test_numbers_and_mappings_are_read_as_they_are(value: Any, expected: float) -> None:
    task = fake(lambda document, texts: {"m": 1.0}, ("m", mean, True))
    assert generic.sample_score(task, {}, {"m": value})[0] == expected


@pytest.mark.parametrize(("points", "share"), [(5, 1), (2, 0.4), (1, 0.2), (0.5, 0.1), (0, 0)])
def test_points_are_a_share_of_full_marks(points: float, share: float) -> None:
    task = fake(lambda document, texts: {"m": {"score": 5}}, ("m", mean, True))
    assert generic.sample_score(task, {}, {"m": {"score": points}})[0] == pytest.approx(share)
    with pytest.raises(UserError):
        generic.sample_score(task, {}, {"m": {"score": 6}})


def test_a_sum_whose_right_answer_is_not_known_is_refused() -> None:
    task = fake(said, ("m", lambda items: hits(items) * len(items) / 1000, True), target="other")
    with pytest.raises(UserError, match="no score between 0 and 1"):
        generic.sample_score(task, {}, said({}, ["gold"]))


def test_the_order_of_the_list_decides_and_errors_to_avoid_do_not_count() -> None:
    task = fake(
        lambda document, texts: {"wer": 0.9, "odd": "?", "b": 0.25, "a": 0.5},
        ("wer", mean, False), ("odd", lambda items: {"x": 1}, True), ("a", mean, True),
        ("b", mean, True),
    )  # fmt: skip
    assert generic.sample_score(task, {}, task.process_results({}, ["x"]))[0] == 0.5


@pytest.mark.parametrize(
    "value", [float("nan"), 7.0, -0.5, "text", {"score": "high"}, None, {"score": float("inf")}]
)
def test_what_is_no_share_is_refused(value: Any) -> None:
    task = fake(lambda document, texts: {"m": 1.0}, ("m", lambda items: None, True))
    with pytest.raises(UserError, match="task=fake gives m for an answer, and no score"):
        generic.sample_score(task, {}, {"m": value})


def test_a_judge_is_found_behind_helpers_objects_and_imports() -> None:
    class Judge:
        def ask(self) -> Any:
            return requests.post("http://x")

        def read(self) -> str:
            return "A"

    judge = Judge()

    def asks(document: Any, texts: list[str]) -> Any:
        return judge.ask()

    def reads(document: Any, texts: list[str]) -> Any:
        return judge.read()

    def imports(document: Any, texts: list[str]) -> Any:
        import openai  # noqa: F401

    def server(document: Any, texts: list[str]) -> Any:
        return lmms_eval.llm_judge.get_server("openai", None)

    assert judges.judge_of(asks) == "requests"
    assert judges.judge_of(functools.partial(asks, texts=[])) == "requests"
    assert judges.judge_of(reads) is None
    assert judges.judge_of(imports) == "openai"
    assert judges.judge_of(None) is None
    assert judges.judge_of(said) is None


def test_an_aggregation_that_could_ask_a_judge_is_never_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(requests, "post", lambda url: asked.append(url) or 1.0)

    def grade(items: list[Any]) -> float:
        return float(requests.post("http://x"))

    with pytest.raises(UserError, match="no score between 0 and 1"):
        generic.sample_score(fake(said, ("m", grade, True)), {}, said({}, ["x"]))
    assert asked == []


COUNTED: dict[str, int] = {"n": 0}


def counts(items: list[float]) -> float:
    COUNTED["n"] += len(items)
    return COUNTED["n"] / 10


def test_an_aggregation_that_counts_on_in_its_module_starts_anew_each_time(tmp_path: Path) -> None:
    task = fake(lambda document, texts: {"m": 1.0}, ("m", counts, True))
    for _ in range(3):
        assert generic.aggregate(task, [{"m": 1.0}] * 4, tmp_path) == 0.4
    assert COUNTED == {"n": 0}
    assert generic.aggregate(task, [{"other": 1.0}], tmp_path) is None
