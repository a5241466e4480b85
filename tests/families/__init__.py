"""Tiny random models of real families with their real processors, checked through `load`."""

import harness  # noqa: F401 - before transformers: it lets torchvision be imported
