"""LongBench (Bai et al. 2024, arXiv 2308.14508) as lmms-eval tasks: prompts, metrics, data."""
