"""RULER (arXiv 2404.06654): its 13 tasks drawn for any length and tokenizer, prompts and metrics.

Must not know models, methods or the store.
"""
