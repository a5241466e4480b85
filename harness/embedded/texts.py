"""Long texts with something hidden in them, and questions whose answers are words of the text.

RULER's and LongBench's phrasing in the embedded model's vocabulary. A text carries every question
that it can be asked, so that training reads it once for all of them; a benchmark asks the first.
Knows no models and no tokenizer but the rule that cuts words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

from harness.embedded.haystacks import NOISE, Query, Text, fit, weave
from harness.embedded.words import KEYS, LABELS, NAMES, RELATIONS, TYPES, VALUES, pieces
from harness.scoring.longbench.prompts import PROMPTS, halves

HOPS = 4  # RULER's default: a chain has HOPS + 1 variables
VALUES_EACH = 4  # RULER's multi-value needle

# RULER's templates (NVIDIA/RULER scripts/data/synthetic/constants.py, Apache-2.0).
NIAH = (
    "Some special magic words are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the words afterwards.\n{context}\n"
    "What are all the special magic words for {query} mentioned in the provided text?",
    "The special magic words for {query} mentioned in the provided text are",
)
NIAH_ONE = (
    "A special magic word is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the word afterwards.\n{context}\n"
    "What is the special magic word for {query} mentioned in the provided text?",
    "The special magic word for {query} mentioned in the provided text is",
)
MAGIC = "One of the special magic words for {} is: {}."
TRACKING = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above.",
    "Answer: According to the chain(s) of variable assignment in the text above, "
    f"{HOPS + 1} variables are assigned the value {{query}}, they are:",
)
SECRET = "The secret word for {} is {}."
NEEDLE = "{context}\n\nWhat is the secret word for {query}? Answer with the word directly."
# LongBench's released prompt says 30 paragraphs; these texts have fewer.
RETRIEVAL = PROMPTS["passage_retrieval_en"].replace("Here are 30", "Here are some")
COUNT, FEW_SHOT, QA = (PROMPTS[name] for name in ("passage_count", "trec", "hotpotqa"))


Draw = Callable[..., Text]


def _ruler(template: tuple[str, str], key: str, outputs: Sequence[str], ordered: bool) -> Query:
    after = template[0].split("{context}")[1].format(query=key)
    return Query(key, after.strip(), after, template[1].format(query=key), tuple(outputs), ordered)


def _depths(rng: Random, count: int, depth: float | None) -> list[float]:
    """Random depths, but for a given first one."""
    depths = [rng.random() for _ in range(count)]
    return depths if depth is None else [depth, *depths[1:]]


def niah(
    rng: Random, length: int, keys: int = 1, values: int = 1, depth: float | None = None
) -> Text:
    """RULER's needles: `keys` magic words' keys with `values` words each, all in noise.

    length: tokens of the longest prompt with its answer. depth: the first needle's, else random.
    """
    words, hidden = rng.sample(KEYS, keys), rng.sample(VALUES, keys * values)
    found = {key: hidden[i * values : (i + 1) * values] for i, key in enumerate(words)}
    needles = [MAGIC.format(key, value) for key in words for value in found[key]]
    placed = list(zip(_depths(rng, len(needles), depth), needles, strict=True))
    template = NIAH_ONE if keys * values == 1 or values == 1 else NIAH

    def make(room: int) -> Text:
        context = weave(placed, room) if room >= 0 else ""
        order = {value: context.find(f"is: {value}.") for value in hidden}
        queries = [
            _ruler(template, key, sorted(found[key], key=order.__getitem__), False) for key in words
        ]
        before = template[0].split("{context}")[0] + context
        return Text("niah", before, context, tuple(queries))

    return fit("niah", length, make)


def tracking(rng: Random, length: int, chains: int = 1) -> Text:
    """RULER's variable tracking: each chain assigns a word to a variable and passes it on."""
    names, hidden = rng.sample(NAMES, chains * (HOPS + 1)), rng.sample(VALUES, chains)
    placed: list[tuple[float, str]] = []
    for index in range(chains):
        chain = names[index * (HOPS + 1) : (index + 1) * (HOPS + 1)]
        lines = [f"VAR {chain[0]} = {hidden[index]}"]
        lines += [f"VAR {new} = VAR {old}" for old, new in pairwise(chain)]
        placed += zip(sorted(rng.random() for _ in lines), lines, strict=True)
    queries = tuple(
        _ruler(TRACKING, value, names[i * (HOPS + 1) : (i + 1) * (HOPS + 1)], True)
        for i, value in enumerate(hidden)
    )

    def make(room: int) -> Text:
        context = weave(placed, room) if room >= 0 else ""
        return Text("tracking", TRACKING[0].split("{context}")[0] + context, context, queries)

    return fit("tracking", length, make)


def needle(rng: Random, length: int, keys: int = 1, depth: float | None = None) -> Text:
    """One secret word in noise, or several with different keys."""
    words, hidden = rng.sample(KEYS, keys), rng.sample(VALUES, keys)
    lines = [SECRET.format(*pair) for pair in zip(words, hidden, strict=True)]
    placed = list(zip(_depths(rng, keys, depth), lines, strict=True))
    before, after = NEEDLE.split("{context}")
    queries = []
    for key, value in zip(words, hidden, strict=True):
        asked = after.format(query=key)
        queries.append(Query(key, asked.strip(), asked, "", (value,)))

    def make(room: int) -> Text:
        context = weave(placed, room) if room >= 0 else ""
        return Text("needle", before + context, context, tuple(queries))

    return fit("needle", length, make)


def _longbench(
    kind: str,
    prompt: str,
    context: str,
    asked: Sequence[tuple[str, str, tuple[str, ...]]],
    wrapped: bool = True,
    classes: tuple[str, ...] = (),
) -> Text:
    """A text of LongBench's prompt; asked: key, input and answer words of each question."""
    before, _ = halves(prompt, {"context": context, "input": ""})
    queries = [
        Query(key, text, halves(prompt, {"context": "", "input": text})[1], "", outputs)
        for key, text, outputs in asked
    ]
    return Text(kind, before, context, tuple(queries), wrapped, classes)


def key_value(rng: Random, length: int, keys: int = 8) -> Text:
    """Facts about different things in noise; LongBench's multi-document question answering."""
    words, hidden = rng.sample(KEYS, keys), rng.sample(VALUES, keys)
    facts, asked = [], []
    for key, value in zip(words, hidden, strict=True):
        relation = rng.choice(RELATIONS)
        facts.append((rng.random(), f"The {relation} of the {key} is {value}."))
        asked.append((key, f"What is the {relation} of the {key}?", (value,)))
    return fit(
        "key_value",
        length,
        lambda room: _longbench("key_value", QA, weave(facts, room) if room >= 0 else "", asked),
    )


def _paragraphs(rng: Random, subjects: Sequence[str], room: int) -> str:
    """Numbered paragraphs about the subjects with noise in each, of at most `room` tokens."""
    heads = [f"Paragraph {i}: This is about the {key}." for i, key in enumerate(subjects, 1)]
    noise: list[list[str]] = [[] for _ in heads]
    left = room - sum(len(pieces(head)) + 2 for head in heads)
    if left < 0:
        raise ValueError(f"{room} tokens are too few for {len(heads)} paragraphs; add {-left}")
    turn = 0
    while (size := len(pieces(text := rng.choice(NOISE)))) <= left:
        noise[turn % len(heads)].append(text)
        left, turn = left - size, turn + 1
    return "\n\n".join(" ".join((head, *more)) for head, more in zip(heads, noise, strict=True))


def retrieval(rng: Random, length: int, paragraphs: int = 6) -> Text:
    """LongBench's passage retrieval: which paragraph is an abstract from? At most 9 paragraphs."""
    words = rng.sample(KEYS, paragraphs)
    asked = [(key, f"It tells about the {key}.", (str(i),)) for i, key in enumerate(words, 1)]

    def make(room: int) -> Text:
        context = _paragraphs(rng, words, room) if room >= 0 else ""
        return _longbench("retrieval", RETRIEVAL, context, asked)

    return fit("retrieval", length, make)


def count(rng: Random, length: int, paragraphs: int = 6, unique: int = 4) -> Text:
    """LongBench's passage count: how many different paragraphs are there? At most 9."""
    kinds = rng.sample(KEYS, unique)
    words = kinds + rng.choices(kinds, k=paragraphs - unique)
    rng.shuffle(words)
    asked = [("", "", (str(unique),))]

    def make(room: int) -> Text:
        if room < 0:
            return _longbench("count", COUNT, "", asked)
        said = {kind: _paragraphs(rng, [kind], room // paragraphs) for kind in kinds}
        bodies = [said[word].split(":", 1)[1] for word in words]
        context = "\n\n".join(f"Paragraph {i}:{body}" for i, body in enumerate(bodies, 1))
        return _longbench("count", COUNT, context, asked)

    return fit("count", length, make)


def few_shot(rng: Random, length: int, types: int = 4) -> Text:
    """LongBench's few-shot classification: what a type of thing is called here is in the examples.

    A question asks about a thing that no example shows, where there is one left.
    """
    names = dict(zip(rng.sample(sorted(TYPES), types), rng.sample(LABELS, types), strict=True))
    order = {kind: rng.sample(TYPES[kind], len(TYPES[kind])) for kind in names}
    asked = []
    for kind, label in names.items():
        for key in order[kind][-2:]:  # held back from the examples
            asked.append((key, f"Question: What is a {key}?\nType:", (label,)))
    rng.shuffle(asked)

    def make(room: int) -> Text:
        examples: list[str] = []
        left, shown = room, dict.fromkeys(names, 0)
        kinds = list(names)
        while left >= 0:
            if len(examples) % types == 0:
                rng.shuffle(kinds)
            kind = kinds[len(examples) % types]
            key = order[kind][shown[kind] % (len(order[kind]) - 2)]
            example = f"Question: What is a {key}?\nType: {names[kind]}\n"
            left -= len(pieces(example))
            if left < 0:
                break
            examples.append(example)
            shown[kind] += 1
        context = "".join(examples).rstrip("\n")
        return _longbench(
            "few_shot", FEW_SHOT, context, asked, wrapped=False, classes=tuple(names.values())
        )

    return fit("few_shot", length, make)


KINDS: dict[str, Draw] = {
    draw.__name__: draw for draw in (niah, tracking, needle, key_value, retrieval, count, few_shot)
}


def vocabulary() -> list[str]:
    """Every token that the texts can say, in a fixed order."""
    said = [*NOISE, *NIAH, *NIAH_ONE, MAGIC, *TRACKING, SECRET, NEEDLE, RETRIEVAL, COUNT, FEW_SHOT]
    said += [QA, "The of the is. What is the of the?", "Paragraph: This is about the."]
    said += ["It tells about the.", "Question: What is a?\nType:", "VAR = VAR"]
    placeholders = ("{context}", "{query}", "{input}")
    text = " ".join(said)
    for placeholder in placeholders:
        text = text.replace(placeholder, " ")
    words = [w for w in pieces(text) if w not in ("{", "}")]
    return list(dict.fromkeys([*words, *KEYS, *VALUES, *NAMES, *LABELS, *RELATIONS]))
