"""Settings as one would type them behind those of the small run, from the lists beside this file.

A line of overrides_refused.txt ends with the word that the refusal has to name.
"""

from pathlib import Path


def _lines(name: str) -> tuple[str, ...]:
    path = Path(__file__).with_name(f"overrides_{name}.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


REFUSED = tuple(tuple(line.rsplit(" | ", 1)) for line in _lines("refused"))
ACCEPTED = _lines("accepted")
EITHER = _lines("either")  # taken or refused, but it must end well

# Text that no setting expects, for whichever key comes.
ODD = (
    "", "null", "true", "nan", "inf", "-1", "0", "1e400", "-0.0", "[]", "{}", "[1,2]", "{a:1}",
    "9223372036854775808", "'9'", "1.5", "abc", "'中文'", "'é\u0301'", "😀", "'a\tb'", "'a\nb'",
    "'a\0b'", "\0", "'\u202e'", "'" + "x" * 300 + "'", "'" + "y" * 5000 + "'", "${seed}", "${",
    "\"'\"", "a b", "../..", "/", "1_0", "0x1f", "???", "'{{ x }}'", "'%s %d'", "'\\udc80'",
    "[[[[]]]]", "[" * 200, "\udcff",
)  # fmt: skip
