"""How the embedded model is built and trained, step by step; nothing here is needed to run it."""
