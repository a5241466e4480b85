"""InfiniteBench's metrics as lmms-eval `process_results` functions, scores in [0, 1].

Rules: src/compute_scores.py of github.com/OpenBMB/InfiniteBench (MIT), their oddities kept, since
published numbers have them. Must not know prompts, models or the store.

Every function takes a row with `answer` (the references) and, where it asks for a letter,
`options`, and a list of one answer text. The release strips answers itself wherever whitespace
could matter, as lmms-eval does.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from harness.scoring.longbench.metrics import Document, Score, best, port

WORD_ENDS = '\n:"' + "'.,?!{}"


def first_number(doc: Document, results: Sequence[str]) -> Score:
    """The first run of digits is the key (passkey, number_string)."""
    found = re.search("[0-9]+", results[0])
    return _hit(found is not None and found[0] == _first(doc))


def value(doc: Document, results: Sequence[str]) -> Score:
    """The value is one of the answer's words (kv_retrieval)."""
    return _hit(_first(doc) in _spaced(results[0], WORD_ENDS).split())


def speaker(doc: Document, results: Sequence[str]) -> Score:
    """The first reference, as it is written, is one of the answer's words in capitals."""
    words = _spaced(results[0], WORD_ENDS).split()
    return _hit(_first(doc) in [word.upper() for word in words])


def last_number(doc: Document, results: Sequence[str]) -> Score:
    """The last word is the returned number (code_run)."""
    words = _spaced(results[0], "\n.`'\":").split()
    try:
        return _hit(bool(words) and int(words[-1]) == int(_first(doc)))
    except ValueError:
        return _hit(False)


def number(doc: Document, results: Sequence[str]) -> Score:
    """The first number, its sign apart, is the one looked for (math_find).

    The release stops with an error at a decimal answer to a whole reference; here it is compared.
    """
    found = re.search(r"\d+\.\d+|\d+", results[0])
    return _hit(found is not None and float(found[0]) == float(_first(doc)))


def leading_share(doc: Document, results: Sequence[str]) -> Score:
    """The share of the intermediate values given before the first wrong one (math_calc)."""
    right = doc["answer"]
    right = [int(v) for v in (right[0] if isinstance(right[0], list) else right)]
    # Python refuses to make numbers of thousands of digits, and none is that long.
    given = [int(digits[:1000]) for digits in re.findall("[0-9]+", results[0])]
    agree = [a == b for a, b in zip(given, right, strict=False)]
    length = agree.index(False) if False in agree else len(agree)
    return {"leading_share": length / len(right)}


def debug_choice(doc: Document, results: Sequence[str]) -> Score:
    """The letter with its full stop or colon, or letter or function after "is:" (code_debug)."""
    name, letter = choice(doc)
    text = results[0].strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return _hit(True)
    text = _single_spaces(_spaced(text, ["\n", *"`'\"-*", "Option", "option"]))
    prefixes = ("answer is:", "is:", "answer:", "correct option is:")
    return _hit(bool(_follows(text, prefixes, (letter, name))))


def book_choice(doc: Document, results: Sequence[str]) -> Score:
    """The letter that the answer begins with or states, or the option's text (longbook_choice)."""
    label = choice(doc)
    text = results[0].strip()
    if text[:1] and text[0] in "ABCD":
        return _hit(text[0] in label)
    if text in label:
        return _hit(True)
    text = _single_spaces(_spaced(text, "\n\"'.,?!{}"))
    stated = _follows(text, ("answer is:", "answer:", "answer is", "option is"), label)
    if stated is not None:
        return _hit(stated)
    letters = (word for word in text.split() if word in "ABCD")
    return _hit(next(letters, None) in label)


def qa_f1(doc: Document, results: Sequence[str]) -> Score:
    """Token F1 after lowering and dropping punctuation and English articles."""
    return {"qa_f1": best(port().qa_f1_score, results[0], doc["answer"])}


def character_f1(doc: Document, results: Sequence[str]) -> Score:
    """F1 over characters without punctuation and whitespace (longbook_qa_chn)."""
    return {"character_f1": best(_character_f1, results[0], doc["answer"])}


def rouge_lsum(doc: Document, results: Sequence[str]) -> Score:
    """ROUGE-L over lines as sentences, by the package rouge_score without stemming."""
    return {"rouge_lsum": best(_rouge_lsum, results[0], doc["answer"])}


def choice(doc: Document) -> tuple[str, str]:
    """The right option's text and letter; files name the text alone or both."""
    text, *letter = doc["answer"]
    return text, letter[0] if letter else "ABCD"[list(doc["options"]).index(text)]


def _hit(right: bool) -> Score:
    return {"accuracy": float(right)}


def _first(doc: Document) -> str:
    """The first reference; some versions of the files hold it bare."""
    answer = doc["answer"]
    return str(answer[0] if isinstance(answer, (list, tuple)) else answer)


def _spaced(text: str, parts: Iterable[str]) -> str:
    """Replace each of the parts by a space."""
    for part in parts:
        text = text.replace(part, " ")
    return text


def _single_spaces(text: str) -> str:
    return re.sub(" +", " ", text)


def _follows(text: str, prefixes: Iterable[str], wanted: Iterable[str]) -> bool | None:
    """Whether what comes a character after the first prefix present begins with a wanted text.

    Returns:
        None when no prefix is there.
    """
    for prefix in prefixes:
        if prefix in text:
            rest = text.split(prefix, 1)[1][1:]
            return rest.startswith(tuple(wanted))
    return None


def _character_f1(prediction: str, reference: str) -> float:
    clean = port().normalize_zh_answer
    return float(port().f1_score(list(clean(prediction)), list(clean(reference))))


def _rouge_lsum(prediction: str, reference: str) -> float:
    return float(_rouge_scorer().score(reference, prediction)["rougeLsum"].fmeasure)


@cache
def _rouge_scorer() -> Any:
    from importlib import import_module

    return import_module("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"], use_stemmer=False)
