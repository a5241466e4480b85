"""Compile every launch of every operation to machine code, without a GPU.

`python -m tests.kernels.ahead_of_time` prints a row a kernel, architecture and dtype: registers,
spilled bytes, shared memory and its limit, then what spills on each architecture. It exits 1 where
one does not compile or needs more shared memory than there is, or where one that is launched by
default (`by_default`) spills. Needs a process in which TRITON_INTERPRET is not set. With `--record`
it keeps the rows in compiled.txt, under a digest of all that they depend on and the version of
Triton; tests compile anew only where the digest is another one.
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
from functools import partial
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


def recorded() -> tuple[str, str | None]:
    """The digest on record and the version of Triton that it is of, if that stands there."""
    with RECORD.open() as file:
        found, *version = file.readline().strip().split(" triton ")
    return found, version[0] if version else None


def unrecorded() -> str:
    """That nothing is on record for this version of Triton, in a sentence; or an empty string."""
    version = recorded()[1]
    if version in (None, triton.__version__):
        return ""
    return (
        f"{RECORD.name} is of Triton {version} and says nothing of Triton {triton.__version__}; "
        "`python -m tests.kernels.ahead_of_time` compiles every launch with it."
    )


@dataclass(frozen=True)
class Job:
    """One specialisation of one kernel; tensors are named by their dtype."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]
    capability: int
    label: str
    default: bool


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a job; error: why there is nothing to say. default: whether it is
    launched by default.
    """

    name: str
    label: str
    capability: int
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    error: str = ""
    default: bool = True

    @property
    def wrong(self) -> str:
        """What is wrong with it, or an empty string."""
        if self.error:
            return self.error
        limit = SHARED[self.capability]
        if self.spilled and self.default:
            return f"spills {self.spilled} bytes and is launched by default"
        return f"needs {self.shared} of {limit} bytes" if self.shared > limit else ""

    @property
    def state(self) -> str:
        """The end of its row."""
        if self.wrong:
            return f"WRONG: {self.wrong}"
        return "spills, not by default" if self.spilled else "ok"


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
                            by_default(name, dtype, dim, arguments),
                        )
                        key = (kernel.__name__, job.arguments, job.options, capability)
                        if key not in found or job.default:
                            found[key] = job
    return list(found.values())


def by_default(operation: str, dtype: torch.dtype, dim: int, arguments: Sequence[Any]) -> bool:
    """Whether a default sweep launches this on a GPU: in bfloat16, for the heads of 128 that most
    models have, without the mask of those whose images look ahead, and not with group=joint.
    """
    masked = any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in arguments)
    usual = dtype == torch.bfloat16 and dim == 128
    return usual and not masked and operation != "joint_reconstruction"


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
    said_of = partial(Compiled, job.kernel.__name__, job.label, job.capability, default=job.default)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as log:
            made = triton.compile(
                source, target=GPUTarget("cuda", job.capability, 32), options=launch
            )
    except Exception as error:
        return said_of(error=f"{type(error).__name__}: {error}")
    said = log.getvalue()
    registers = re.search(r"Used (\d+) registers", said)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    if not registers or not spills:
        return said_of(error="ptxas said nothing of registers")
    spilled = sum(int(number) for pair in spills for number in pair)
    shared = made.metadata.shared
    return said_of(int(registers[1]), spilled, shared)


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
    done, rows = [], [f"{digest()} triton {triton.__version__}"]
    for one in compile_all(args.operations, args.arch, args.processes):
        done.append(one)
        rows.append(
            f"{one.name:28} sm_{one.capability} {one.label:10} {one.registers:4} registers "
            f"{one.spilled:4} spilled {one.shared:7} bytes shared  {one.state}"
        )
        print(rows[-1], flush=True)
    for capability in args.arch:
        print(spills([one for one in done if one.capability == capability]))
    failed = sum(bool(one.wrong) for one in done)
    took = time.perf_counter() - started
    print(f"{len(done) - failed} of {len(done)} compiled well by Triton {triton.__version__} in "
          f"{took:.0f} s")  # fmt: skip
    if args.record:
        RECORD.write_text("\n".join([*rows, ""]))
    return bool(failed)


def spills(done: Sequence[Compiled]) -> str:
    """How many launches of one architecture spill, and how many of those by default."""
    spilling = [one for one in done if one.spilled]
    bytes_of = sum(one.spilled for one in spilling)
    return (
        f"sm_{done[0].capability}: {len(done)} launches, {sum(one.default for one in done)} by "
        f"default; {len(spilling)} spill ({bytes_of:,} bytes), "
        f"{sum(one.default for one in spilling)} by default"
    )


if __name__ == "__main__":
    sys.exit(main())
