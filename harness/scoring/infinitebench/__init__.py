"""InfiniteBench (Zhang et al., arXiv 2402.13718) as lmms-eval tasks: prompts, metrics, data."""
