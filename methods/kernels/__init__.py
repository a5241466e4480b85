"""The heavy operations of the eviction methods, one a file, on tensors only.

Each is a Triton kernel, its twin in plain torch, and one function that picks by device (`using`).
Sums are float32, KV heads are never expanded.
"""

from .append_entries import append_entries
from .column_sums import column_sums
from .factors import output_factors
from .gather_entries import Unturning, gather_entries
from .joint_reconstruction import joint_reconstruction
from .launch import KERNELS, by_triton, require, using
from .lowest_entries import lowest_entries
from .move_entries import move_entries
from .pooling import pool, pool_adaptive
from .ragged_attention import Turning, ragged_attention
from .ragged_runs import Run, find_runs
from .reconstruction import reconstruction
from .row_lse import row_lse
from .top_positions import mean_top_positions
from .upload import send, shared
from .window_attention import window_attention
from .window_columns import window_columns
from .window_lse import window_lse

__all__ = [
    "KERNELS",
    "Run",
    "Turning",
    "Unturning",
    "append_entries",
    "by_triton",
    "column_sums",
    "find_runs",
    "gather_entries",
    "joint_reconstruction",
    "lowest_entries",
    "mean_top_positions",
    "move_entries",
    "output_factors",
    "pool",
    "pool_adaptive",
    "ragged_attention",
    "reconstruction",
    "require",
    "row_lse",
    "send",
    "shared",
    "using",
    "window_attention",
    "window_columns",
    "window_lse",
]
