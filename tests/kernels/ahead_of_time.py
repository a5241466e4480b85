"""Compile every launch of every operation to machine code, without a GPU.

`python -m tests.kernels.ahead_of_time` prints a row a kernel, architecture and dtype: registers,
spilled bytes, shared memory and its limit, and exits 1 where one does not compile, spills or needs
more shared memory than there is. Needs a process in which TRITON_INTERPRET is not set. With
`--record` it keeps that in compiled.txt, under a digest of all that it depends on; tests compile
anew only where the digest is another one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from methods.kernels.launch import recording
from tests.kernels import OPERATIONS

HERE = Path(__file__).parent
RECORD = HERE / "compiled.txt"
SHARED = {80: 166_912, 89: 101_376, 90: 232_448}  # most bytes a block may have
HEADS = {  # head sizes of each dtype
    torch.bfloat16: (64, 128, 256),
    torch.float32: (64, 128, 256),
    torch.float16: (128,),  # launched as bfloat16 is: on one architecture
}
_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


def digest() -> str:
    """Of the kernels, of what the operations launch, and of Triton's version."""
    kernels = sorted((HERE.parents[1] / "methods" / "kernels").glob("*.py"))
    launches = [HERE / f"test_{name}.py" for name in OPERATIONS]
    found = hashlib.sha256(triton.__version__.encode())
    for path in [*kernels, *launches, HERE / "oracles.py", Path(__file__)]:
        found.update(path.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Job:
    """One specialisation of one kernel; tensors are named by their dtype."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]
    capability: int
    label: str


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a job; error: why there is nothing to say."""

    name: str
    label: str
    capability: int
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    error: str = ""

    @property
    def wrong(self) -> str:
        """What is wrong with it, or an empty string."""
        if self.error:
            return self.error
        limit = SHARED[self.capability]
        if self.spilled:
            return f"spills {self.spilled} bytes"
        return f"needs {self.shared} of {limit} bytes" if self.shared > limit else ""


def jobs(names: Sequence[str], capabilities: Sequence[int]) -> list[Job]:
    """Every distinct specialisation that the operations launch."""
    found: dict[tuple[Any, ...], Job] = {}
    for name in names:
        operation = importlib.import_module(f"tests.kernels.test_{name}")
        for capability in capabilities:
            for dtype, dims in HEADS.items():
                if dtype == torch.float16 and capability != 90:
                    continue
                for dim in dims:
                    with recording(capability) as recorder:
                        operation.shipped(dtype, dim)
                    assert recorder.launches, f"{name} launches nothing"
                    for kernel, arguments, options in recorder.launches:
                        job = Job(
                            kernel,
                            tuple(_named(each) for each in arguments),
                            tuple(sorted(options.items())),
                            capability,
                            f"{_TYPES[dtype][1:]} d{dim}",
                        )
                        key = (kernel.__name__, job.arguments, job.options, capability)
                        found.setdefault(key, job)
    return list(found.values())


def _named(argument: Any) -> Any:
    """What Triton specialises on: the type of a tensor, and of whole numbers 1 and divisors."""
    if isinstance(argument, torch.Tensor):
        return (_TYPES[argument.dtype], True)
    if isinstance(argument, bool) or argument is None:
        return ("constexpr", argument)
    if isinstance(argument, int):
        if argument == 1:
            return ("constexpr", 1)
        return ("i64" if abs(argument) >= 2**31 else "i32", argument % 16 == 0)
    return ("fp32", False)


def compile_one(job: Job) -> Compiled:
    """To machine code, with ptxas's own account of registers and spills."""
    names = list(job.kernel.arg_names)
    options = dict(job.options)
    launch = {
        key: options.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in options
    }
    signature: dict[str, str] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    positional = dict(zip(names, job.arguments, strict=False))
    for index, name in enumerate(names):
        kind, extra = positional.get(name) or ("constexpr", options[name])
        signature[name] = kind
        if kind == "constexpr":
            constants[(index,)] = extra
        elif extra:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(job.kernel, signature, constants, attributes)
    name = job.kernel.__name__
    try:
        with contextlib.redirect_stdout(io.StringIO()) as log:
            made = triton.compile(
                source, target=GPUTarget("cuda", job.capability, 32), options=launch
            )
    except Exception as error:
        return Compiled(name, job.label, job.capability, error=f"{type(error).__name__}: {error}")
    said = log.getvalue()
    registers = re.search(r"Used (\d+) registers", said)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    if not registers or not spills:
        return Compiled(name, job.label, job.capability, error="ptxas said nothing of registers")
    spilled = sum(int(number) for pair in spills for number in pair)
    shared = made.metadata.shared
    return Compiled(name, job.label, job.capability, int(registers[1]), spilled, shared)


def _prepare() -> None:
    triton.knobs.compilation.always_compile = True
    triton.knobs.nvidia.dump_ptxas_log = True
    torch.set_num_threads(1)


_known: dict[tuple[Any, ...], list[Job]] = {}


def _once(*wanted: Any) -> list[Job]:
    if wanted not in _known:
        _known[wanted] = jobs(*wanted)
    return _known[wanted]


def _numbered(names: Sequence[str], capabilities: Sequence[int], number: int) -> Compiled:
    """One job, found again in a process of the pool, since kernels do not travel."""
    return compile_one(_once(names, capabilities)[number])


def compile_all(
    names: Sequence[str], capabilities: Sequence[int], processes: int
) -> Iterator[Compiled]:
    """Every job, in order."""
    wanted = (tuple(names), tuple(capabilities))
    count = len(_once(*wanted))
    with ProcessPoolExecutor(processes, initializer=_prepare) as pool:
        yield from pool.map(_numbered, *([each] * count for each in wanted), range(count))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, compile, print; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", nargs="+", default=OPERATIONS, choices=OPERATIONS)
    parser.add_argument("--arch", nargs="+", type=int, default=list(SHARED), choices=list(SHARED))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--record", action="store_true", help=f"keep it in {RECORD.name}")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    failed = total = 0
    rows = [digest()]
    for one in compile_all(args.operations, args.arch, args.processes):
        total += 1
        failed += bool(one.wrong)
        state = f"WRONG: {one.wrong}" if one.wrong else "ok"
        rows.append(
            f"{one.name:28} sm_{one.capability} {one.label:10} {one.registers:4} registers "
            f"{one.spilled:4} spilled {one.shared:7} bytes shared  {state}"
        )
        print(rows[-1], flush=True)
    print(f"{total - failed} of {total} compiled well in {time.perf_counter() - started:.0f} s")
    if args.record:
        RECORD.write_text("\n".join([*rows, ""]))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
