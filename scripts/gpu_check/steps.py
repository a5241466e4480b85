"""Decoding steps as they pass: when each begins, and a profile of a few of them.

A step begins with the model's forward of one token a cell, or with the replay of a CUDA graph. It
must not know the engine.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


class Steps(AbstractContextManager["Steps"]):
    """While open: begins, in seconds; replays of graphs; `table` of the profiled steps.

    profiled: first and last of the steps that are profiled, counted from 0. An eager step that is
    captured as well counts twice, so replays are profiled where they are asked for (`graphs`).
    """

    def __init__(
        self, model: nn.Module, profiled: tuple[int, int] | None = None, graphs: bool = False
    ) -> None:
        self.begins: list[float] = []
        self.replays = 0
        self.table: list[dict[str, Any]] = []
        self.wall_ms = 0.0
        self._model, self._profiled, self._graphs = model, profiled, graphs
        self._profile: profile | None = None

    def __enter__(self) -> Steps:
        self._hook = self._model.register_forward_pre_hook(self._forward, with_kwargs=True)
        self._replay = replay = torch.cuda.CUDAGraph.replay

        def noted(graph: torch.cuda.CUDAGraph) -> None:
            self.replays += 1
            if self._graphs:
                self._begin()
            replay(graph)

        torch.cuda.CUDAGraph.replay = noted
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()
        torch.cuda.CUDAGraph.replay = self._replay
        if self._profile is not None:
            self._stop()

    def milliseconds(self) -> list[float]:
        """Of each step but the last, from its beginning to that of the next."""
        pairs = zip(self.begins[:-1], self.begins[1:], strict=True)
        return [1000 * (after - before) for before, after in pairs]

    def _forward(self, _model: nn.Module, _args: Any, named: dict[str, Any]) -> None:
        ids = named.get("input_ids")
        if not self._graphs and ids is not None and ids.shape[0] > 1 and ids.shape[1] == 1:
            self._begin()

    def _begin(self) -> None:
        step = len(self.begins)
        if self._profiled is not None and step == self._profiled[0]:
            kinds = [ProfilerActivity.CPU]
            kinds += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=kinds)
            self._profile.start()
            self._started = time.perf_counter()
        if self._profiled is not None and step == self._profiled[1] and self._profile is not None:
            self._stop()
        self.begins.append(time.perf_counter())

    def _stop(self) -> None:
        assert self._profile is not None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall_ms = 1000 * (time.perf_counter() - self._started)
        self._profile.stop()
        for each in self._profile.key_averages():
            on_device = each.device_type == DeviceType.CUDA
            spent = each.self_device_time_total if on_device else each.self_cpu_time_total
            self.table.append(
                {"name": each.key, "device": on_device, "calls": each.count, "ms": spent / 1000}
            )
        self._profile = None


def summary(steps: Steps, count: int) -> dict[str, Any]:
    """A profiled step on average: its wall time, the device's share, launches, copies, waits."""
    device = [each for each in steps.table if each["device"]]
    host = [each for each in steps.table if not each["device"]]

    def calls(rows: list[dict[str, Any]], *words: str) -> float:
        own = (each["calls"] for each in rows if any(word in each["name"] for word in words))
        return sum(own) / count

    def top(rows: list[dict[str, Any]]) -> list[list[Any]]:
        largest = sorted(rows, key=lambda each: -each["ms"])[:8]
        return [[each["name"][:70], each["ms"] / count, each["calls"] / count] for each in largest]

    return {
        "profiled_ms": steps.wall_ms / count,
        "device_ms": sum(each["ms"] for each in device) / count,
        "kernels": sum(each["calls"] for each in device) / count
        - calls(device, "Memcpy", "Memset"),
        "copies": calls(device, "Memcpy"),
        "waits": calls(host, "StreamSynchronize", "EventSynchronize"),
        "top_device": top(device),
        "top_host": top(host),
    }
