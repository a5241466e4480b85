"""The forked child that runs the program with its streams, surroundings and engine replaced.

It must behave as a fresh interpreter would: the program runs as __main__, exit handlers run, and
what nobody caught is a traceback.
"""

import atexit
import io
import json
import os
import resource
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

MEMORY = 12 * 2**30  # of address space; the libraries alone map several GB


class Recording:
    """An engine that notes what it is asked: one line a call, written before the answer."""

    def __init__(self, engine: Any, log: Path, pause: float) -> None:
        self.engine, self.log, self.pause = engine, log, pause

    def prompt(self, messages: Any, *how: Any) -> Any:
        """The inner engine's."""
        return self.engine.prompt(messages, *how)

    def told(self) -> Sequence[str]:
        """The inner engine's."""
        return self.engine.told()

    def answer(self, messages: Any, cells: Sequence[Any], *how: Any) -> Any:
        """The inner engine's results; the note says when they were there."""
        time.sleep(self.pause)
        found = self.engine.answer(messages, cells, *how)
        parts = messages[0]["content"]
        text = "".join(part.get("text", "") for part in parts if isinstance(part, Mapping))
        named = [f"{c.method}{c.params}{c.ratio}{c.budget}{c.control}" for c in cells]
        with self.log.open("a") as file:
            file.write(json.dumps({"text": text, "cells": named}) + "\n")
        return found


def install(engine: Any, folder: Path, pause: float) -> None:
    """Let every load of the model be on record; None stands for the real one."""
    from harness.run import collect

    real = collect.load_engine

    def load(config: Any, *given: Any, **named: Any) -> Any:
        if engine is not None:
            _check_device(config)
        (folder / "loaded").touch()
        loaded = real(config, *given, **named) if engine is None else engine
        return Recording(loaded, folder / "asked.jsonl", pause)

    collect.load_engine = load


def _check_device(config: Any) -> None:
    """What the real engine refuses before it loads a model."""
    from harness.engine import check_device
    from harness.errors import UserError
    from harness.models.devices import device_of

    try:
        check_device(device_of(config.device), config.engine.kernels, config.engine.cuda_graphs)
    except ValueError as error:
        raise UserError(f"model={config.model.name}: {error}") from error


def undrawn() -> None:
    """Pictures of a dot and empty pages: drawing takes most of a small run's time."""
    from PIL import Image

    from harness.report import heatmap, page, plots

    plots.curve = lambda rows, path: Image.new("L", (1, 1)).save(path)
    heatmap.heatmap = lambda rows, path: Image.new("L", (1, 1)).save(path)
    page.write = lambda study, path, *told: path.write_text("")


def become(
    argv: Sequence[str],
    folder: Path,
    environment: Mapping[str, str | None],
    prepare: Sequence[Callable[[], object]],
    limits: Mapping[int, int],
) -> NoReturn:
    """Turn this forked process into `python -m harness argv`; never returns."""
    code = 1
    try:
        _surround(folder, environment)
        sys.argv = ["harness", *argv]
        for step in prepare:
            step()
        for name, value in ({resource.RLIMIT_AS: MEMORY} | dict(limits)).items():
            resource.setrlimit(name, (value, value))
        (folder / "begun").touch()
        code = _program()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
        except BaseException:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # the stream is gone
                code = code or 120  # as Python does
        os._exit(code)


def _program() -> int:
    try:
        runpy.run_module("harness", run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
            return 1
        return int(ending.code or 0) & 0xFF
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _own_media(folder: Path) -> None:
    """wandb made its folder for pictures when it was imported: forks would remove each other's."""
    from wandb.sdk.data_types._private import MEDIA_TMP

    folder.mkdir(exist_ok=True)
    MEDIA_TMP._finalizer.detach()
    MEDIA_TMP.name = str(folder)


def _surround(folder: Path, environment: Mapping[str, str | None]) -> None:
    """Streams into files, a place of its own for temporary files, and the default signals."""
    for number, name in ((1, "out"), (2, "err")):
        target = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(target, number)
        os.close(target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", line_buffering=True)
    for name in ("tmp", "cwd"):
        (folder / name).mkdir(exist_ok=True)
    os.chdir(folder / "cwd")
    given = {"TMPDIR": str(folder / "tmp"), **environment}
    for name, value in given.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None
    _own_media(folder / "media")
    usual_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def usual_signals() -> None:
    """Signals as a terminal gives them: nohup and shells' background jobs ignore some."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
