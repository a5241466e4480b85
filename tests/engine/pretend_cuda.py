"""A pretend CUDA device, made of `pretend_tensors`, on which the engine and the methods run.

Within `pretending` what would initialise CUDA is stood in for, and what would reach a GPU is noted.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from pretend_tensors import LAUNCH, WAIT, Log, Mode, Pretended, note, note_copy, plain, start, where
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from methods import kernels

OURS = ("methods.", "harness.")
_tensor, _to, _sdpa = torch.tensor, torch.Tensor.to, scaled_dot_product_attention


class _Event:
    """torch.cuda.Event."""

    def __init__(self, **options):
        pass

    def record(self, *stream):
        pass

    def synchronize(self):
        note(WAIT, "event")

    def elapsed_time(self, other):
        return 0.0


class _Properties(NamedTuple):
    multi_processor_count: int = 132


@contextlib.contextmanager
def pretending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """The pretend device until the block ends, with the Log of this block."""
    log = start()
    with monkeypatch.context() as patch, Mode(), torch.no_grad():
        _patch_tensors(patch)
        cuda = {
            "Event": _Event,
            "current_stream": lambda *_: None,
            "synchronize": lambda *_: note(WAIT, "synchronize"),
            "current_device": lambda: 0,
            "is_current_stream_capturing": lambda: False,
            "get_device_capability": lambda *_: (9, 0),
            "get_device_properties": lambda *_: _Properties(),
            "mem_get_info": lambda *_: (10**11, 14 * 10**10),
            "memory_reserved": lambda *_: 0,
            "memory_allocated": lambda *_: 0,
            "device": lambda *_: contextlib.nullcontext(),
        }
        for name, value in cuda.items():
            patch.setattr(torch.cuda, name, value)
        _forget()
        try:
            yield log
        finally:
            _forget()  # small tensors that are kept by device


def _patch_tensors(patch: pytest.MonkeyPatch) -> None:
    """Stand in for what would initialise CUDA, or escapes the dispatcher."""
    patch.setattr(torch, "tensor", _made)
    patch.setattr(torch.Tensor, "to", _moved)
    patch.setattr(torch.Tensor, "cpu", lambda self: _moved(self, "cpu"))
    patch.setattr(torch.Tensor, "pin_memory", _pinned)
    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", _attended)


def _made(data, *, device=None, **options):
    def listed(value):
        if isinstance(value, Pretended):
            return value.tolist()
        return [listed(one) for one in value] if isinstance(value, list | tuple) else value

    made = _tensor(listed(data), **options)
    return made if device is None else made.to(device)


def _moved(self, *args, **options):
    device, dtype = options.get("device"), options.get("dtype")
    for each in args:
        if isinstance(each, torch.Tensor):
            device, dtype = each.device, each.dtype
        elif isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, str | torch.device):
            device = each
    here = isinstance(self, Pretended)
    there = here if device is None else torch.device(device).type == "cuda"
    if here == there:
        return _to(self, *args, **options) if dtype is None or not here else _to(self, dtype)
    note_copy(self, there, options.get("non_blocking", False))
    copied = _to(plain(self), dtype or self.dtype).clone()
    return Pretended(copied) if there else copied


def _pinned(self):
    pinned = self.clone()
    pinned.pinned_ = True
    return pinned


def _attended(q, k, v, attn_mask=None, **how):
    if not isinstance(q, Pretended):
        return _sdpa(q, k, v, attn_mask, **how)
    assert attn_mask is None or isinstance(attn_mask, Pretended), "a mask of the CPU"
    note(LAUNCH, f"attention {q.dtype}, enable_gqa={how.get('enable_gqa', False)}")
    return Pretended(_sdpa(*map(plain, (q, k, v, attn_mask)), **how))


def _forget() -> None:
    """Clear what the methods keep from call to call."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "methods":
            for each in vars(module).values():
                if hasattr(each, "cache_clear"):
                    each.cache_clear()


def stand_in_for_kernels(patch: pytest.MonkeyPatch) -> None:
    """Let twins in plain torch compute what kernels would, and note what is launched for those.

    Interpreted they would take minutes.
    """

    def launch(kernel, grid, *args, **options):
        note(LAUNCH, getattr(kernel, "fn", kernel).__name__)
        if any(isinstance(x, torch.Tensor) and not isinstance(x, Pretended) for x in args):
            raise RuntimeError(f"a kernel takes a tensor of the CPU, at {where()}")

    def standing_in(operation):
        def run(*args, **options):
            if not any(isinstance(each, Pretended) for each in tree_leaves((args, options))):
                return operation(*args, **options)  # a twin that is made of others
            operation(*args, **options)  # notes everything and computes nothing
            with _disable_current_modes(), kernels.using("torch"):
                found = operation(*tree_map(plain, args), **tree_map(plain, options))
            return tree_map(lambda x: Pretended(x) if isinstance(x, torch.Tensor) else x, found)

        return run

    modules = {name: each for name, each in sys.modules.items() if name.startswith(OURS)}
    homes = [name for name, each in modules.items() if hasattr(each, "launch")]
    homes.remove("methods.kernels.launch")
    for name in homes:
        patch.setattr(modules[name], "launch", launch)
    for operation in [getattr(kernels, name) for name in kernels.__all__]:
        if inspect.isfunction(operation) and operation.__module__ in homes:
            made = standing_in(operation)
            for module in modules.values():
                for name in [n for n, value in vars(module).items() if value is operation]:
                    patch.setattr(module, name, made)


def place(module: torch.nn.Module) -> torch.nn.Module:
    """Move a module to the pretend device, in place."""
    for each in module.modules():
        for name, parameter in list(each._parameters.items()):
            if parameter is not None:
                each._parameters[name] = Pretended(parameter.detach().clone())
        for name, buffer in list(each._buffers.items()):
            if buffer is not None:
                each._buffers[name] = Pretended(buffer.detach().clone())
    return module
