"""The heavy operations of the eviction methods, one a file, on tensors only.

Each function is the plain-torch form: float32 inside, any device, KV heads never expanded.
"""

from .column_sums import column_sums
from .reconstruction import joint_reconstruction, output_factors, reconstruction
from .window_attention import window_attention

__all__ = [
    "column_sums",
    "joint_reconstruction",
    "output_factors",
    "reconstruction",
    "window_attention",
]
