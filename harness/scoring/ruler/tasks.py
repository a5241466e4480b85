"""RULER's 13 tasks by name, in the published configuration (scripts/synthetic.yaml).

Knows the recipes and the sources they need; must not know caches or lmms-eval.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from harness.errors import UserError
from harness.scoring import sources
from harness.scoring.ruler import documents
from harness.scoring.ruler.frequencies import CommonWords, FrequentWords
from harness.scoring.ruler.lengths import Filling, Recipe, TokenCounter
from harness.scoring.ruler.needles import Needles
from harness.scoring.ruler.prompts import COLUMNS
from harness.scoring.ruler.variables import tracking

NEEDLES: dict[str, dict[str, Any]] = {
    "niah_single_1": {"haystack": "noise"},
    "niah_single_2": {"haystack": "essay"},
    "niah_single_3": {"haystack": "essay", "values": "uuids"},
    "niah_multikey_1": {"haystack": "essay", "num_keys": 4},
    "niah_multikey_2": {"haystack": "needle"},
    "niah_multikey_3": {"haystack": "needle", "keys": "uuids", "values": "uuids"},
    "niah_multivalue": {"haystack": "essay", "num_values": 4},
    "niah_multiquery": {"haystack": "essay", "num_queries": 4},
}
QUESTIONS = {"qa_1": "squad", "qa_2": "hotpotqa"}
TASKS = (*NEEDLES, "vt", "cwe", "fwe", *QUESTIONS)
SAMPLES = 500


class Ruler:
    """The generator `ruler`: options task (ruler_<name>), length (tokens), samples, sources."""

    version = 1
    features = COLUMNS
    tasks = TASKS
    advice = ", or choose task=ruler_offline, which needs none"
    defaults: Mapping[str, Any] = MappingProxyType({"samples": SAMPLES})

    def needs(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The sources of a task; UserError where RULER has no such task."""
        name = str(options["task"]).removeprefix("ruler_")
        if name not in TASKS:
            raise UserError(
                f"task={options['task']} is not one of RULER: use ruler_ with one of "
                f"{', '.join(TASKS)}."
            )
        if NEEDLES.get(name, {}).get("haystack") == "essay":
            return ("essays",)
        return (QUESTIONS[name],) if name in QUESTIONS else ()

    def total(self, options: Mapping[str, Any]) -> int:
        """How many rows at most."""
        return int(options["samples"])

    def rows(
        self, options: Mapping[str, Any], tokenizer: Any, seed: int
    ) -> Iterator[dict[str, Any]]:
        """The rows of a task at a length; UserError for a source that is not there."""
        needed = self.needs(options)
        name = str(options["task"]).removeprefix("ruler_")
        given = options.get("sources") or {}
        content = sources.read(needed[0], given, self.advice) if needed else b""
        count, samples = TokenCounter(tokenizer), self.total(options)
        recipe = _recipe(name, count, int(options["length"]), seed, content)
        if isinstance(recipe, documents.Documents):
            samples = min(samples, len(recipe.questions))
        length = int(options["length"])
        return Filling(recipe, f"ruler_{name}", count, length, seed).rows(samples)


def _recipe(name: str, count: TokenCounter, length: int, seed: int, content: bytes) -> Recipe:
    if name in NEEDLES:
        return Needles(**NEEDLES[name], text=content.decode(), seed=seed)
    if name in QUESTIONS:
        read = {"squad": documents.squad, "hotpotqa": documents.hotpotqa}
        return read[QUESTIONS[name]](content, seed)
    if name == "vt":
        return tracking(count, seed)
    return CommonWords(length, seed) if name == "cwe" else FrequentWords(length, seed)
