"""Whether an error says that memory ran out, on the CPU as on CUDA.

Must not know what was being computed.
"""

import torch

# The CPU's allocator and some CUDA libraries raise a plain RuntimeError, safetensors its own error.
_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
    "bad_alloc",
)


def ran_out(error: BaseException) -> bool:
    """True for every way in which Python, torch and safetensors say that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    try:
        text = str(error).lower()
    except Exception:  # code that comes with a checkpoint may raise anything
        return False
    return isinstance(error, Exception) and any(words in text for words in _WORDS)
