"""docs/models.md, written from the checks of the families."""

from pathlib import Path

from tests.families.checks import Report
from tests.families.vision import FAMILIES

PATH = Path(__file__).resolve().parents[2] / "docs" / "models.md"
HEAD = """# Models

Any image-text or text model of transformers whose layers are softmax self-attention can be asked. Layers with
a sliding window, a recurrent state or no cache of their own stay whole; the table says how many layers evict.

Each family below was checked with a tiny random model of its real architecture and its real processor:
loaded as a user loads it, then asked with one image, two images and text alone, under `replay`, `context` and
`paper`. The full cache must answer as `generate` does, StreamingLLM and SnapKV at ratio 0.5 as the untouched
model whose attention is masked to what was kept, and `harness.evict` as both. Differences of logits are below
2e-4 in float32.

On the first prompts of a run the same is asked of the model at hand: its logits when the prompt is split are
compared with those of `generate`, and what the first tokens leave in the cache must not depend on those behind
the split. A model that fails either is refused in one sentence.

A checkpoint with code of its own (`auto_map` in its config.json) is read by the class that transformers has for
its model_type; where transformers has none, as for Kimi-VL, it is refused unless `model.trust_remote_code=true`,
and with it refused where its code reads images or caches latent vectors.

`python -m tests.families --write` writes this page.
"""


def text(reports: list[Report]) -> str:
    """The whole page."""
    parts = [HEAD]
    for title, images in (("Image-text models", True), ("Text models", False)):
        rows = [row(one) for one in reports if (one.name in FAMILIES) == images]
        head = "| family | works | layers that evict | checks |\n|---|---|---|---|"
        parts.append("\n".join([f"## {title}\n", head, *rows]) + "\n")
    return "\n".join(parts)


def row(report: Report) -> str:
    """A line of the table."""
    evicted, number = report.layers
    if "load" in report.refused:
        return f"| {report.name} | no: {report.refused['load']} | | |"
    kinds = {}
    for place, why in report.refused.items():
        kinds.setdefault(place.rpartition(", ")[2] or place, why)
    but = "; ".join(f"{place}: {plain(why)}" for place, why in kinds.items())
    works = f"yes, but {but}" if but else "yes"
    return f"| {report.name} | {works} | {evicted} of {number} | {report.checks} |"


def plain(why: str) -> str:
    """A sentence without places that differ from run to run."""
    head = why.partition(";")[0].partition(" (")[0]
    return " ".join("its folder" if "/" in word else word for word in head.rstrip(".").split())
