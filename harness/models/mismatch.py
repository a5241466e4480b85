"""In which tensors a loaded model is not the one that was saved.

Must not know files or prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from harness.models.modelfiles import listed

# Tables that a model computes when it is built, and what older code saved of them.
_COMPUTED = re.compile(r"(^|[._])(inv_freq|position_ids)$")
_LEGACY = re.compile(r"(^|\.)attn\.(masked_)?bias$|(^|\.)mtp\.")


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill memory that nobody has written with NaN, so that a table left unset can be seen."""
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def differences(model: PreTrainedModel, found: Mapping[str, Any]) -> str:
    """What from_pretrained could not match, in words; nothing where all tensors are in place."""
    layers = _later_layers(model.config)
    missing = sorted(n for n in found["missing_keys"] if not _COMPUTED.search(n))
    left = sorted(
        name
        for name in found["unexpected_keys"]
        if not any(known.search(name) for known in (_COMPUTED, _LEGACY, layers))
    )
    shapes = sorted(
        f"{name} {list(held)} in the file and {list(wanted)} by the config"
        for name, held, wanted in found["mismatched_keys"]
    )
    parts = {
        "missing": missing,
        "of another shape": shapes,
        "left over": left,
        "broken": list(found["error_msgs"]),
    }
    return ", ".join(
        f"{len(names):,} {'tensor is' if len(names) == 1 else 'tensors are'} {what} "
        f"({listed(names)})"
        for what, names in parts.items()
        if names
    )


def _later_layers(config: Any) -> re.Pattern[str]:
    """Layers behind the last one that only guess further tokens, which no answer here uses."""
    text = config.get_text_config(decoder=True)
    last, more = (
        getattr(text, name, None) or 0 for name in ("num_hidden_layers", "num_nextn_predict_layers")
    )
    numbers = "|".join(str(last + i) for i in range(more)) if isinstance(last, int) else ""
    return re.compile(rf"(^|\.)layers\.({numbers})\." if numbers else r"(?!)")


def unset(model: PreTrainedModel) -> str:
    """Tables that nothing has filled, in words."""
    kept = model.state_dict().keys()
    found = [
        name
        for name, table in model.named_buffers()
        if name not in kept and table.is_floating_point() and bool(table.isnan().any())
    ]
    return f"its code leaves {len(found):,} tables unset ({listed(found)})" if found else ""
