"""Tensors that say cuda:0, compute on the CPU and note what a GPU would do.

Every operation on them is noted in a Log: kernels that would be launched, copies to the device, and
what the host would wait for. An operation on tensors of both devices is an error, as it is on a
GPU. What a kernel would take in time or memory it cannot tell.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[2]
OWN = (f"{ROOT}/harness/", f"{ROOT}/methods/")
DEVICE = torch.device("cuda", 0)
# What is noted: a launch; copies to the device, queued from pinned memory or waited for; waiting.
LAUNCH, QUEUED, BLOCKING, WAIT = KINDS = ("launch", "queued copy", "blocking copy", "wait")

_VIEWS = {
    "view", "expand", "slice", "select", "transpose", "permute", "unsqueeze", "squeeze", "t",
    "as_strided", "detach", "alias", "_unsafe_view", "split", "split_with_sizes", "unbind",
    "diagonal", "unfold", "_reshape_alias", "lift_fresh", "view_as_real", "narrow", "movedim",
    "chunk",
}  # fmt: skip
_WAITS = {
    "_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "equal", "is_nonzero", "bincount",
}  # fmt: skip
_NO_KERNEL = {
    "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "resize_", "set_",
    "is_pinned",
}  # fmt: skip
_INDEXING = ("index", "index_put_", "index_put", "_index_put_impl_")


class Event(NamedTuple):
    """kind: as above; where: the line of this project that asked for it, but for launches."""

    phase: str
    kind: str
    operation: str
    where: str


class Log:
    """What was noted. phase: a name for what is going on, given by whoever runs it."""

    def __init__(self) -> None:
        self.phase = ""
        self.events: list[Event] = []

    def note(self, kind: str, operation: str) -> None:
        asked = "" if kind == LAUNCH else where()  # the most, and it takes its time
        self.events.append(Event(self.phase, kind, operation, asked))

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def counts(self, phase: str | None = None) -> Counter[str]:
        """How often each kind was noted, in one phase or in all."""
        return Counter(one.kind for one in self.events if phase in (None, one.phase))


_log = Log()


def start() -> Log:
    """A new log, in which everything is noted from now on."""
    global _log
    _log = Log()
    return _log


def note(kind: str, operation: str) -> None:
    """Note something in the log."""
    _log.note(kind, operation)


def where() -> str:
    """The innermost line of the engine or the methods, behind that of a library below it."""
    library, frame = "", sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OWN):
            return f"{library}{name[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
        if "transformers/" in name and not library:
            library = f"{name.rpartition('transformers/')[2]}:{frame.f_lineno} < "
        frame = frame.f_back
    return library + "?"


def plain(value):
    """The CPU tensor that a pretend one is made of; anything else as it is."""
    return value.data_ if isinstance(value, Pretended) else value


class Pretended(torch.Tensor):
    """A tensor on the pretend device, with its numbers in `data_`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            layout=data.layout,
            device=DEVICE,
            requires_grad=False,
        )
        made.data_ = data
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})

    is_cuda = property(lambda self: True)

    def __repr__(self):
        return f"Pretended({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo):
        return Pretended(self.data_.clone())

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of cuda:0 to numpy")

    def data_ptr(self):
        return self.data_.data_ptr()

    def __invert__(self):
        return torch.bitwise_not(self)

    def new_tensor(self, data, **options):
        return torch.tensor(data, dtype=self.dtype, device=DEVICE)

    def contiguous(self, *args, **kwargs):
        if self.data_.is_contiguous():
            return self
        note(LAUNCH, "contiguous")
        return Pretended(self.data_.contiguous())

    def copy_(self, source, non_blocking=False):
        note_copy(source, True, non_blocking)
        self.data_.copy_(plain(source))
        return self

    def nonzero(self, *args, **kwargs):
        note(WAIT, "nonzero")
        return Pretended(self.data_.nonzero())

    def __getitem__(self, index):
        taken, gathers = _indices(index)
        if gathers:
            note(LAUNCH, "index")
        return Pretended(self.data_[taken])

    def __setitem__(self, index, value):
        if isinstance(value, torch.Tensor) and value.dim() and not isinstance(value, Pretended):
            raise RuntimeError("a tensor of the CPU is assigned to one of cuda:0")
        taken, _ = _indices(index)
        note(LAUNCH, "index_put_")
        self.data_[taken] = plain(value)


def _waiting(name: str):
    def read(self):
        note(WAIT, name)
        return getattr(self.data_, name)()

    return read


for _name in ("tolist", "item", "__int__", "__float__", "__bool__", "__index__"):
    setattr(Pretended, _name, _waiting(_name))


def _indices(index):
    """An index for the CPU, and whether it gathers; what it makes the host wait for is noted."""
    gathers = False
    items = []
    for one in index if isinstance(index, tuple) else (index,):
        if isinstance(one, Pretended):
            if one.dtype in (torch.bool, torch.uint8):
                note(WAIT, "index by bool")
            elif one.dim() == 0:
                note(WAIT, "index by a number")
        elif isinstance(one, torch.Tensor | list):
            note(BLOCKING, "index of the CPU")
        gathers |= isinstance(one, torch.Tensor | list)
        items.append(plain(one))
    return (tuple(items) if isinstance(index, tuple) else items[0]), gathers


def note_copy(source, to_device: bool, queued: bool) -> None:
    """A copy of a tensor to the pretend device or to the CPU."""
    if not source.numel():
        return
    if isinstance(source, Pretended):
        note(LAUNCH if to_device else WAIT, "copy")
    elif to_device:
        pinned = queued and getattr(source, "pinned_", False)
        note(QUEUED if pinned else BLOCKING, f"copy {tuple(source.shape)}")


def _dispatch(func, args, kwargs):  # noqa: C901 - one case an operation
    name = func._schema.name.split("::")[-1]
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    ours = [each for each in tensors if isinstance(each, Pretended)]
    device = kwargs.get("device")
    here = torch.device(device).type == "cuda" if device is not None else bool(ours)
    arguments, options = tree_map(plain, args), tree_map(plain, kwargs)
    if name == "_to_copy":
        queued = options.pop("non_blocking", False)
        options.pop("pin_memory", None), options.pop("device", None)
        note_copy(args[0], here, queued)
        copied = func(*arguments, **options)
        copied = copied.clone() if copied is arguments[0] else copied
        return Pretended(copied) if here else copied
    if name == "copy_":
        note_copy(args[1], isinstance(args[0], Pretended), False)
        func(*arguments, **options)
        return args[0]
    if ours and name in _WAITS:
        note(WAIT, name)
    foreign = [each for each in tensors if not isinstance(each, Pretended) and each.dim()]
    if ours and name in _INDEXING:
        indices = [each for each in args[1] if isinstance(each, torch.Tensor)]
        for each in indices:
            if not isinstance(each, Pretended):
                note(BLOCKING, "index of the CPU")
            elif each.dtype in (torch.bool, torch.uint8):
                note(WAIT, "index by bool")
        foreign = [each for each in foreign if not any(each is one for one in indices)]
    if name == "repeat_interleave" and ours and options.get("output_size") is None:
        note(WAIT, name)
    if ours and foreign:
        shapes = [tuple(each.shape) for each in foreign]
        raise RuntimeError(f"{func} takes tensors of cuda:0 and of the CPU {shapes}, at {where()}")
    if name == "lift_fresh":
        return args[0]
    if device is not None and here:
        options["device"] = torch.device("cpu")
    if func._overloadname == "dtype" and name == "bmm":  # the CPU has no out_dtype
        found = torch.bmm(arguments[0].float(), arguments[1].float())
    else:
        found = func(*arguments, **options)
    if here and name not in _VIEWS | _NO_KERNEL | _WAITS:
        note(LAUNCH, name)
    if func._schema.is_mutable and name.endswith("_") and isinstance(args[0], torch.Tensor):
        return args[0]
    own = {id(each.data_): each for each in ours}

    def wrapped(value):
        if not isinstance(value, torch.Tensor) or isinstance(value, Pretended) or not here:
            return value
        return own.get(id(value)) or Pretended(value)

    return tree_map(wrapped, found)


class Mode(TorchDispatchMode):
    """Sees operations that make tensors on the device; as a fake mode, which needs no GPU."""

    def __init__(self):
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        torch._C._ensureCUDADeviceGuardSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})
