"""The words that the embedded texts draw keys, values, variables and labels from.

Every word is one token of the embedded model. No value, variable or label is part of another one,
since RULER and LongBench look answers up as substrings.
"""

from __future__ import annotations

import re

# What the tokenizer cuts: words with their hyphens, single digits, newlines, single marks.
PATTERN = r"[A-Za-z]+(?:-[A-Za-z]+)*|\d|\n|[^\sA-Za-z\d]"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Keys by type, which is what the few-shot questions ask for.
TYPES: dict[str, tuple[str, ...]] = {
    "animal": _words(
        "wolf tiger horse rabbit eagle whale sheep camel otter lizard monkey goose beaver donkey "
        "falcon panther"
    ),
    "food": _words(
        "bread cheese apple honey rice butter pepper onion carrot garlic cookie salad noodle "
        "pudding yogurt muffin"
    ),
    "tool": _words(
        "hammer shovel ladder wrench pliers chisel drill broom bucket anvil rope scissors hinge "
        "candle kettle saw"
    ),
    "place": _words(
        "castle harbor village desert forest island valley museum temple market tunnel bridge "
        "garden meadow canyon palace"
    ),
    "clothing": _words(
        "jacket scarf shawl boot sweater apron belt helmet mitten sandal vest robe turban slipper "
        "blouse collar"
    ),
    "instrument": _words(
        "piano guitar violin flute trumpet drum cello banjo harp clarinet organ tuba fiddle cymbal "
        "bugle gong"
    ),
}
KEYS = tuple(word for group in TYPES.values() for word in group)
VALUES = _words(
    "copper silver marble velvet cotton amber ivory crystal granite bronze nickel quartz "
    "thunder winter summer autumn morning evening midnight sunset shadow breeze frost rainbow "
    "doctor farmer sailor painter teacher baker hunter soldier pilot lawyer singer writer "
    "river mountain ocean glacier volcano lagoon prairie waterfall reef jungle tundra swamp "
    "rocket planet comet pulsar meteor orbit saturn neptune eclipse nebula cosmos lunar "
    "scarlet crimson indigo violet turquoise magenta maroon olive lavender coral peach beige "
    "wisdom courage justice freedom honor mercy patience glory fortune harmony victory wonder "
    "window pillow mirror carpet blanket curtain cushion drawer cabinet mattress lantern pitcher"
)
NAMES = tuple(first + rest for rest in ("AX", "EZ", "IQ", "OV", "UK") for first in "BDFGKLMNPRTZ")
LABELS = _words("alpha gamma delta sigma omega kappa lambda zeta")
RELATIONS = _words("owner home friend symbol")


def pieces(text: str) -> list[str]:
    """The tokens of a text, as the embedded model's tokenizer cuts it."""
    return re.findall(PATTERN, text)
