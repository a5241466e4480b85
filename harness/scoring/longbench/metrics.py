"""LongBench's metrics as lmms-eval `process_results` functions, one a metric, scores in [0, 1].

Rules: LongBench/metrics.py and eval.py of github.com/THUDM/LongBench (MIT). What lm-eval's port of
them shares with the release is imported from there; what differs is written here. Must not know
prompts, models or the store.

Every function takes a row with `answers` (and `all_classes`) and a list of one answer text, and
returns {metric name: the best score over the row's answers}.
"""

import difflib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Any

Document = Mapping[str, Any]
Score = dict[str, float]

MARK = "\u2060"  # word joiner: invisible, and no whitespace to str.strip


class Verbatim:
    """A filter of lmms-eval that keeps the whitespace around answers, which it would strip.

    The released rules count it: the indentation of a line of code, an empty first line.
    """

    def apply(self, responses: Iterable[str], documents: Any) -> list[str]:
        """Fence every answer text with a mark that `answer` takes off again."""
        return [f"{MARK}{text}{MARK}" for text in responses]


def answer(results: Sequence[str]) -> str:
    """The answer text as the model wrote it, where the task uses the `Verbatim` filter."""
    return results[0].removeprefix(MARK).removesuffix(MARK)


def first_line(text: str) -> str:
    """The first line that counts in trec, triviaqa, samsum and lsht: leading newlines go before."""
    return text.lstrip("\n").split("\n")[0]


def qa_f1(doc: Document, results: Sequence[str]) -> Score:
    """Token F1 after lowering and dropping punctuation and English articles."""
    return {"qa_f1": best(port().qa_f1_score, answer(results), doc["answers"])}


def qa_f1_first_line(doc: Document, results: Sequence[str]) -> Score:
    """`qa_f1` of the first line (triviaqa)."""
    return {"qa_f1": best(port().qa_f1_score, first_line(answer(results)), doc["answers"])}


def qa_f1_zh(doc: Document, results: Sequence[str]) -> Score:
    """F1 over jieba's words without Chinese and ASCII punctuation."""
    return {"qa_f1_zh": best(port().qa_f1_zh_score, answer(results), doc["answers"])}


def rouge(doc: Document, results: Sequence[str]) -> Score:
    """ROUGE-L F of the package `rouge` over words; 0 for an answer without words."""
    return {"rouge": _rouge(port().rouge_score, answer(results), doc)}


def rouge_first_line(doc: Document, results: Sequence[str]) -> Score:
    """`rouge` of the first line (samsum)."""
    return {"rouge": _rouge(port().rouge_score, first_line(answer(results)), doc)}


def rouge_zh(doc: Document, results: Sequence[str]) -> Score:
    """ROUGE-L F over jieba's words."""
    return {"rouge_zh": _rouge(port().rouge_zh_score, answer(results), doc)}


def classification(doc: Document, results: Sequence[str]) -> Score:
    """1 / the number of classes named in the answer if the right one is among them, else 0."""
    return {"classification": _classification(doc, answer(results))}


def classification_first_line(doc: Document, results: Sequence[str]) -> Score:
    """`classification` of the first line (trec, lsht)."""
    return {"classification": _classification(doc, first_line(answer(results)))}


def retrieval(doc: Document, results: Sequence[str]) -> Score:
    """The share of the answer's numbers that are the right paragraph's."""
    return {"retrieval": best(port().retrieval_score, answer(results), doc["answers"])}


def retrieval_zh(doc: Document, results: Sequence[str]) -> Score:
    """`retrieval` with references that read 段落7."""
    return {"retrieval_zh": best(port().retrieval_zh_score, answer(results), doc["answers"])}


def count(doc: Document, results: Sequence[str]) -> Score:
    """The share of the answer's numbers that are the right count."""
    return {"count": best(port().count_score, answer(results), doc["answers"])}


def code_similarity(doc: Document, results: Sequence[str]) -> Score:
    """Similarity, in whole percents, of the first line that is no comment and no fence."""
    return {"code_similarity": best(_code_similarity, answer(results), doc["answers"])}


def _code_similarity(prediction: str, reference: str) -> float:
    # lm-eval skips blank lines, the release takes one as the line. fuzzywuzzy's ratio is difflib's
    # as released, but another number wherever python-Levenshtein happens to be installed.
    lines = prediction.lstrip("\n").split("\n")
    comment = ("`", "#", "//")
    code = next((line for line in lines if not any(sign in line for sign in comment)), "")
    return round(100 * difflib.SequenceMatcher(None, code, reference).ratio()) / 100


def _classification(doc: Document, prediction: str) -> float:
    score = partial(port().classification_score, all_classes=doc["all_classes"])
    return best(score, prediction, doc["answers"])


def best(score: Callable[[str, str], float], prediction: str, references: Iterable[str]) -> float:
    """The highest score over the references, 0 without any."""
    return max((float(score(prediction, right)) for right in references), default=0.0)


def _rouge(score: Callable[[str, str], float], prediction: str, doc: Document) -> float:
    with _recursion(2 * len(prediction) + 2 * max(map(len, doc["answers"]), default=0)):
        return best(score, prediction, doc["answers"])


@contextmanager
def _recursion(levels: int) -> Iterator[None]:
    """Room for `levels` more calls: the package `rouge` recurses once a word of both texts.

    Without it a long summary scores 0, from a length that depends on how deep the caller is.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + levels)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@cache
def port() -> Any:
    """lm-eval's port of the release; imported late, as it takes jieba and lm-eval's whole index."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fuzzywuzzy asks for python-Levenshtein
        metrics = import_module("lm_eval.tasks.longbench.metrics")
    metrics.jieba.setLogLevel("WARNING")
    return metrics
