"""The stages of scripts/gpu_check.sh: what the first minutes on a GPU have to show.

Needs torch, triton, transformers and this repository; writes to the output folder only.
"""
