"""Every test and every process that a test starts: one CPU thread, no wandb server."""

import os

# Before torch is imported. Tiny tensors on several threads mostly wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
