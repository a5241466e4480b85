"""Where a text in Chinese or English names an option's letter as its answer.

A letter counts where words like "答案是" or "选" lead to it, and not where its clause denies or
doubts it ("不选B"), nor where it stands beside another letter ("A和B"). Knows texts only.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

LETTERS = "ABCDEFGH"
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # the wide forms of ASCII
_WIDE_LETTERS = {code: to for code, to in _WIDE.items() if chr(to).isalpha()}
_PLAIN = (
    _WIDE
    | {ord("!"): ",", 0xFF01: ",", 0xFF3B: "(", 0xFF3D: ")"}
    | str.maketrans(
        "。、…【】「」『』〔〕《》〈〉“”[]‘’\u3000\u200b\ufeff選項擇為應該對錯誤嗎確沒還與從這爲",  # noqa: RUF001
        ".,." + "()" * 8 + "''   " + "选项择为应该对错误吗确没还与从这为",
    )
)
_FILL = (
    r"[\s\"'`*_~$\\{}()\[\]<>:=.,-]{0,40}"  # marks between words and the letter that they lead to
)
_HAN = "\u3400-\u9fff"
# What may follow a letter without making a word of it, as "B超" is one.
_GOES_ON = "选项这因由而即也是不吧啊呢哦了才就最正对错吗和或及与跟还以都"
_ENDS = rf"(?![A-Za-z0-9])(?:(?![{_HAN}])|(?=[{_GOES_ON}]))"
_LETTER = rf"(?P<letter>[A-H]{_ENDS}|[a-h](?=[^A-Za-z0-9{_HAN}]*(?:$|[.,;:)\n])))"
_PERHAPS = "(?:应该?|应当|就|便|显然|肯定|一定|可能|大概|会|将|可以|能|最终){0,4}"
_TEXT = r"(?:\\(?:text|textbf|mathrm|mathbf|rm|bf)\s*)"
_CHINESE = (
    rf"答案{_PERHAPS}(?:是|为|选择?|:|=){{0,4}}",
    r"(?<![候备筛多单待落竞评入海])选(?!项)(?:择|取|定|的是){0,3}(?:选?项)?(?:是|为|:){0,3}",
    r"(?:正确|最佳|最好|最?合适)的?选?项(?:是|为|:){0,3}",
    r"(?:所以|因此|因而|故|综上|最终)[,:]?(?:应该?|应当|就)?是",
    rf"\\boxed\s*\{{\s*{_TEXT}?",
)
_ENGLISH = (
    r"(?i:\b(?:answer|option|choice)\W{0,4}(?:is|(?:would|should|must)\s+be|[:=>-])(?:\s+option)?)",
    r"(?i:\bI(?:'d|'ll|\s+would|\s+will)?\s+(?:choose|select|pick|go\s+with)(?:\s+option)?)",
)
_WEAK = (
    r"(?:^|[.,;\n])\s*(?:选项(?:是|为|:){0,3}|(?:我觉得|我认为|我想|应该?|应当|可能|大概|看起来|似乎|就|那么"
    r"|因此|所以|故|这|那|它|正确的|最合适的){0,4}是)"
)
_CLAIM = rf"(?:%s)(?P<fill>{_FILL})(?:选项{_FILL})?{_LETTER}"
_SAID = re.compile(_CLAIM % "|".join(_CHINESE))
_REASONED = re.compile(_CLAIM % "|".join(_CHINESE + _ENGLISH))
_IS = re.compile(_CLAIM % _WEAK)
_CALLED = re.compile(rf"(?P<fill>)(?P<letter>[A-H]){_FILL}(?:选项|项)(?=\s*(?:$|[.,;\n]))")
_JUDGED = re.compile(
    rf"(?P<fill>)(?P<letter>[A-H]){_FILL}(?:选?项)?{_FILL}(?:才|就|最|是|为){{0,4}}"
    r"(?:(?:正确|对|合适|合理|佳|准确)的?(?:答案|选项)?"
    r"|(?i:is(?:\s+the)?\s+(?:correct|right|best)(?:\s+(?:answer|option|choice))?))(?=\s*(?:$|[.,;\n]))"
)
_MENTION = re.compile(rf"(?<![A-Za-z0-9])[{LETTERS}]{_ENDS}")
_BESIDE = r"[ \t\"'`*_()\[\]{}$]{0,20}"
_AND = rf"{_BESIDE}(?:[和或与及跟到至、,/&~-]|以及|或者|还是|and\b|or\b|[ \t]){_BESIDE}"
_EITHER = rf"{_BESIDE}(?:[和或与及跟]|以及|或者|还是){_BESIDE}选择?项?{_BESIDE}"
_FOLLOWED = re.compile(rf"(?:{_AND}|{_EITHER})[A-H](?![A-Za-z0-9])")
_FOLLOWED_SMALL = re.compile(rf"{_AND}{_BESIDE}[a-h](?![A-Za-z0-9])")  # "a" can be an article
_PRECEDED = re.compile(rf"(?<![A-Za-z0-9])[A-H](?:{_AND}|{_EITHER})$")
_SURE = re.compile("毫无疑问|无疑|不难|没错|不错|非常|无论如何|不过|分别|特别|区别|类别")
_DENIED = re.compile(
    r"[不没未非别勿莫除错误否无若谁何]|什么|如果|假如|假设|倘|难道|排除"
    r"|(?i:\b(?:not|never|neither|nor|cannot|without|except|if|whether|wrong|incorrect)\b|n't\b)"
)
_OTHER = re.compile(rf"而?(?:不是|并非|不选|非){_FILL}[A-H]")
_DOUBTED = re.compile(r"[不错吗么否非?]|以外|之外|除外|还是|(?i:\b(?:wrong|incorrect|not)\b)")
_CLAUSE = re.compile(r"[.,;?\n]")
_CLAUSE_END = re.compile(r"(?=[\s.,;:])(?!\s*\?)|\n")
_REACH = 200  # characters that are looked at on either side of a letter


class Claim(NamedTuple):
    """A letter that a text names as its answer and where the words that lead to it end.

    "" where it names it beside another.
    """

    start: int
    letter: str


def ascii_letters(text: str) -> str:
    """The text with the wide forms of Latin letters, which Chinese keyboards type, as ASCII."""
    return text.translate(_WIDE_LETTERS)


def plain(text: str) -> str:
    """The text, character by character, with Chinese marks as ASCII and wide forms narrow."""
    return text.translate(_PLAIN)


def concluded(text: str) -> list[Claim]:
    """The letters to which words lead in a text that reasons, "B is correct" where its line has no
    other letter.
    """
    judged = _claims(_JUDGED, text)
    alone = [claim for claim in judged if len(mentions(_line(text, claim.start))) == 1]
    return sorted([*_claims(_REASONED, text), *alone])


def named(text: str) -> str | None:
    """The one letter that a whole answer names in Chinese: by words, by "B选项", by "是B".

    "" where it names several; None where no words lead to a letter.
    """
    found = {claim.letter for claim in _claims(_SAID, text)}
    if not found:
        weak = (_IS, _CALLED, _JUDGED)
        found = {claim.letter for form in weak for claim in _claims(form, text)}
        found |= mentions(text) if found else set()
    return (found.pop() if len(found) == 1 else "") if found else None


def only(text: str, letter: str) -> bool:
    """Whether no other letter stands by itself in a text, and nothing denies or doubts this one."""
    places = [found.start() for found in _MENTION.finditer(text)]
    sound = not any(denied(text, place) or doubted(text, place + 1) for place in places)
    return sound and mentions(text) == {letter}


def mentions(text: str) -> set[str]:
    """The letters that stand by themselves in a text that `plain` gave."""
    return {found.group() for found in _MENTION.finditer(text)}


def denied(text: str, start: int) -> bool:
    """Whether the clause that leads to a place denies or doubts what stands there."""
    before = text[max(0, start - _REACH) : start]
    begins = [m.end() for pattern in (_CLAUSE, _MENTION) for m in pattern.finditer(before)]
    return bool(_DENIED.search(_SURE.sub("", before[max(begins, default=0) :])))


def doubted(text: str, end: int) -> bool:
    """Whether what follows a letter in its clause takes it back: "B不对", "B吗", "B?"."""
    rest = _OTHER.sub("", text[end : end + _REACH])
    stop = _CLAUSE_END.search(rest)
    return bool(_DOUBTED.search(rest[: stop.start()] if stop else rest))


def beside(text: str, start: int, end: int) -> bool:
    """Whether a letter is one of several: "A和B", "A、B", "A or B"."""
    small = text[start].islower() and _FOLLOWED_SMALL.match(text, end)
    return bool(
        small
        or _FOLLOWED.match(text, end)
        or _PRECEDED.search(text[max(0, start - _REACH) : start])
    )


def _line(text: str, place: int) -> str:
    return text[text.rfind("\n", 0, place) + 1 :].split("\n", 1)[0]


def _claims(form: re.Pattern[str], text: str) -> Iterator[Claim]:
    for found in form.finditer(text):
        start, end = found.span("letter")
        if denied(text, found.start()) or denied(text, start):
            continue
        if beside(text, start, end):
            yield Claim(found.start("fill"), "")
        elif not doubted(text, end):
            yield Claim(found.start("fill"), found["letter"].upper())
