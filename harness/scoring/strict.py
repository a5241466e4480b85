"""The stricter reading of a multiple-choice answer: VLMEvalKit's exact matching, without a judge.

The rule is that of vlmeval/utils/matching_util.py at e8e78f0 (2026-08-18), in words of our own:

1. An answer that holds one of a few refusals is read as "no option".
2. With the marks . ( ) [ ] , : ; ! * # { } taken for spaces, the answer is a list of words. If
   exactly one option letter is among them and it stands, where it stands first, among the last
   four, it is the answer. If no option letter but the word Z is there, it is "no option".
3. Else the first "answer is X" with X one of A to D in either case, whatever follows X, so that
   "the answer is blue" is B.
4. Else the one option whose text the answer holds, case aside, unless the answer is longer than
   twice all options together.

An answer that is not all ASCII may be in Chinese, which that code does not read: there the letter
counts that words lead to, or that stands alone (`letters`), and 2 takes the marks of Chinese and
wide letters for ASCII's but reads nothing where the letter is denied or is one of several.

What is left unresolved goes to a judge model there; with exact matching it is wrong, and in
CircularEval so is its question. Knows texts and options only.
"""

import re
from collections.abc import Mapping
from typing import Any

from harness.scoring import letters

REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
FAILED = "Failed to obtain answer via API"
NO_OPTION = "Z"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MARKS = str.maketrans({mark: " " for mark in ".()[],:;!*#{}"})
_NAMED = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_TAIL = 4  # words at the end of an answer among which its letter has to be


def options(document: Mapping[str, Any]) -> dict[str, str]:
    """The options that are there, by letter; None, NaN, "" and the text "nan" are none."""
    return {letter: str(document[letter]) for letter in LETTERS if present(document.get(letter))}


def present(value: Any) -> bool:
    """Whether a field of a table holds something: tables write "nan" where nothing was."""
    return value is not None and value == value and str(value) not in ("", "nan")


def read(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter that an answer names, "Z" for none of the options, None where unresolved.

    Args:
        answer: the model's text.
        choices: option texts by letter, as `options` gives them.
    """
    return _by_letter(answer, choices) or _by_text(answer, choices)


def letter(answer: str, choices: Mapping[str, str]) -> str | None:
    """`read`, with "no option" taken for unresolved, as both are wrong."""
    found = read(answer, choices)
    return found if found in choices else None


def _by_letter(answer: str, choices: Mapping[str, str]) -> str | None:
    if FAILED in answer:
        return None
    if any(refusal in answer for refusal in REFUSALS):
        return NO_OPTION
    if not answer.isascii():
        return _by_chinese(letters.plain(answer), choices)
    return _by_word(answer, choices)


def _by_chinese(said: str, choices: Mapping[str, str]) -> str | None:
    """As `_by_word`, of an answer whose marks and letters are ASCII and whose words need not be."""
    named = letters.named(said)
    if named is not None:
        return named if named in choices else None
    found = _by_word(said, choices)
    if found is None or found == NO_OPTION or _NAMED.search(said):
        return found
    return found if letters.only(said, found) else None


def _by_word(answer: str, choices: Mapping[str, str]) -> str | None:
    words = answer.translate(_MARKS).split()
    there = [choice for choice in choices if choice in words]
    if len(there) == 1 and words.index(there[0]) >= len(words) - _TAIL:
        return there[0]
    if not there and NO_OPTION in words:
        return NO_OPTION
    named = _NAMED.search(answer)
    return named[1].upper() if named and named[1].upper() in choices else None


def _by_text(answer: str, choices: Mapping[str, str]) -> str | None:
    said = answer.lower()
    if len(said) > 2 * sum(len(text) for text in choices.values()):
        return None
    held = [name for name, text in choices.items() if text.lower() in said]
    return held[0] if len(held) == 1 else None
