"""longbench_mini's rows as chat messages: LongBench's released prompts, one of them adapted.

Knows the columns of the data and nothing of the task that they are about.
"""

from collections.abc import Mapping
from typing import Any

from harness.embedded import texts
from harness.scoring.longbench.prompts import halves, message

PROMPTS = {
    "passage_retrieval": texts.RETRIEVAL,
    "passage_count": texts.COUNT,
    "few_shot": texts.FEW_SHOT,
    "key_value": texts.QA,
}
UNWRAPPED = frozenset({"few_shot"})  # as LongBench's trec, whose prompt it is


def doc_to_messages(doc: Mapping[str, Any], *_: Any, **__: Any) -> list[dict[str, Any]]:
    """One user message in two parts, cut where the context ends."""
    name = doc["dataset"]
    return message(*halves(PROMPTS[name], doc), template=name not in UNWRAPPED)


def doc_to_text(doc: Mapping[str, Any], *_: Any, **__: Any) -> str:
    """The same prompt as one text."""
    return "".join(halves(PROMPTS[doc["dataset"]], doc))
