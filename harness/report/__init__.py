"""From samples to what a person reads: tables, pictures, the summary, the answer.

Must not know of tensors, lmms-eval, Hydra or wandb.
"""
