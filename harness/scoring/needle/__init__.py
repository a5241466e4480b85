"""Needles at chosen depths: a sentence in a long text, or one picture among many.

Must not know models, methods or the store.
"""
