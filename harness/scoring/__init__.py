"""The room where lmms-eval lives: it builds the requests and scores the stored answers.

Must not touch tensors: prompts and answers pass through to the engine as they are.
"""
