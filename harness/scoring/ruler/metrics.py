"""RULER's two metrics on one answer: how many of the references it contains, or whether any.

Definition: NVIDIA/RULER scripts/eval (postprocess_pred, string_match_all, string_match_part), as
fractions instead of percent. Knows a document's `outputs` and nothing of how it came about.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f]")


def process_results_all(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """string_match_all: the share of the references in the answer, whatever their case.

    Args:
        doc: has `outputs`, the references, at least one.
        results: the answer as its only element.
    """
    found = _found(doc, results)
    return {"string_match": sum(found) / len(found)}


def process_results_part(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """string_match_part: 1 where the answer contains any of the references, else 0.

    Args:
        doc: has `outputs`, the references, at least one.
        results: the answer as its only element.
    """
    return {"string_match": float(max(_found(doc, results)))}


def _found(doc: Mapping[str, Any], results: Sequence[str]) -> list[bool]:
    answer = _CONTROL.sub("\n", results[0].strip()).strip().lower()
    return [str(reference).lower() in answer for reference in doc["outputs"]]
