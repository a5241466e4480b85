"""What the samples say in numbers.

Works on the samples frame alone. It must not know of tensors, of lmms-eval, of Hydra or of how the
numbers are shown.
"""

from harness.stats.ablation import ABLATION_COLUMNS, ablate, pairs
from harness.stats.cells import abilities, described, summarise
from harness.stats.comparisons import COMPARISON_COLUMNS, compare
from harness.stats.frame import (
    ABILITY_COLUMNS,
    CELL,
    CELL_COLUMNS,
    GROUP,
    LEVELS,
    REQUIRED,
    TIMINGS,
    chosen,
    computed,
    failed,
    of,
    roles,
)
from harness.stats.intervals import accuracy_interval
from harness.stats.losses import LOSS_COLUMNS, between, losses
from harness.stats.means import means
from harness.stats.plan import Plan
from harness.stats.readings import other as other_reading
from harness.stats.standings import STANDING_COLUMNS, evicted, keeps_more, standings

__all__ = [
    "ABILITY_COLUMNS",
    "ABLATION_COLUMNS",
    "CELL",
    "CELL_COLUMNS",
    "COMPARISON_COLUMNS",
    "GROUP",
    "LEVELS",
    "LOSS_COLUMNS",
    "REQUIRED",
    "STANDING_COLUMNS",
    "TIMINGS",
    "Plan",
    "abilities",
    "ablate",
    "accuracy_interval",
    "between",
    "chosen",
    "compare",
    "computed",
    "described",
    "evicted",
    "failed",
    "keeps_more",
    "losses",
    "means",
    "of",
    "other_reading",
    "pairs",
    "roles",
    "standings",
    "summarise",
]
