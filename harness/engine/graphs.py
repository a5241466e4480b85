"""Decoding steps replayed as a CUDA graph, for batches whose cells only grow.

A step of a model with many layers is hundreds of short launches, and the host needs longer to start
them than the device to run them; a graph starts them all at once. What a policy that holds its
budget drops is decided on the host, so cells that hold theirs are left to eager steps. It must not
know how cells were chosen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness.engine.cache import CompactLayer
from harness.engine.caches import CellCache

Forward = Callable[[Tensor, Tensor], Tensor]  # ids and positions of one token a cell -> logits
Capture = Callable[[Callable[[], Tensor], torch.device], tuple[Callable[[], None], Tensor]]

# A capture costs as much as some twenty steps, for it empties the allocator's cache. It waits until
# so many were made, since most answers end early, and pays only where so many may follow.
PATIENCE, WORTH = 16, 32
_AGREE = 1e-2  # of the largest logit: a step of bfloat16 is 4e-3


def pays(made: int, left: int) -> bool:
    """Whether a graph may pay after `made` steps of a batch with at most `left` to come."""
    return made >= PATIENCE and left >= WORTH


def growing(cache: CellCache, cells: int) -> list[int]:
    """The cells whose steps are the same work for the host every time."""
    if not all(isinstance(layer, CompactLayer) for layer in cache.layers):
        return []
    changing = set().union(*(layer.changing() for layer in cache.layers))
    return [cell for cell in range(cells) if cell not in changing]


def capture(step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """How to replay a step on this device, and where its result lies after each replay."""
    graph = torch.cuda.CUDAGraph()
    before = torch.cuda.current_stream(device)
    # A capture takes the current device's stream: on another one it would record nothing.
    with torch.cuda.device(device):
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
                result = step()
        finally:
            torch.cuda.set_stream(before)

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, result


class Steps:
    """Decoding steps of one batch: eager, or replayed where that is asked for and possible.

    made: steps that its cells have made together. Before a graph is used it repeats a step that was
    made eagerly; one that disagrees, or cannot be captured, is given up with a warning, and
    `failed` says why.
    """

    def __init__(
        self,
        forward: Forward,
        cache: CellCache,
        graphs: bool,
        made: int = 0,
        capture: Capture = capture,
    ) -> None:
        self.forward = forward
        self.cache = cache
        self.capture = capture
        self.made = made
        self.possible = graphs and all(_grows(layer) for layer in cache.layers)
        self.failed = ""
        self._replay: Callable[[], None] | None = None

    def __call__(self, ids: Tensor, positions: Tensor, left: int) -> Tensor:
        """Logits [cells, V] after one more token, ids [cells, 1]; `left` steps come after it."""
        self.made += 1
        if self._replay is not None:
            return self._again(ids, positions)
        if not self.possible or not pays(self.made - 1, left):
            return self.forward(ids, positions)
        for layer in self._layers():
            layer.tiles.reserve(1 + left)  # a graph writes to the memory it was captured with
        logits = self.forward(ids, positions)
        self._prepare(ids, positions, logits)
        return logits

    def forget(self) -> None:
        """The batch has changed: what was captured is void."""
        if self._replay is not None:
            self._replay, self.made = None, 0

    def _prepare(self, ids: Tensor, positions: Tensor, logits: Tensor) -> None:
        """Capture a step, and make the last one, which gave these logits, again with it."""
        self._ids, self._positions = ids.clone(), positions.clone()
        layers = self._layers()
        before = [layer.count() for layer in layers]
        reason = ""
        try:
            replay, self._logits = self.capture(
                lambda: self.forward(self._ids, self._positions), ids.device
            )
        except RuntimeError as error:
            reason = f"a decoding step cannot be captured ({error})"
        for layer, counted in zip(layers, before, strict=True):
            layer.recount(counted)  # capturing ran the host's part only
        if not reason:
            self._back(layers)
            self._logits.fill_(torch.inf)  # a replay that does nothing must not agree
            replay()
            self._on(layers)
            off, other = _difference(self._logits, logits)
            if off <= _AGREE and not other and all(layer.agrees() for layer in layers):
                self._replay = replay
                return
            reason = f"a replayed decoding step is off by {off:.1e} of the largest logit"
            reason += f" and chooses other tokens for {other} cells" if other else ""
            for layer, counted in zip(layers, before, strict=True):
                layer.restore(counted, -1)
            self.forward(ids, positions)  # what the replay wrote may be wrong as well
        self.possible = False
        self.failed = f"{reason}; decoding goes on without CUDA graphs."
        warnings.warn(self.failed, stacklevel=2)

    @staticmethod
    def _back(layers: Sequence[CompactLayer]) -> None:
        """Undo the last token, on the device and on the host."""
        for layer in layers:
            layer.rewind()

    @staticmethod
    def _on(layers: Sequence[CompactLayer]) -> None:
        """Count a replayed token on the host."""
        for layer in layers:
            layer.recount(layer.count(1))

    def _again(self, ids: Tensor, positions: Tensor) -> Tensor:
        assert self._replay is not None
        self._ids.copy_(ids)
        self._positions.copy_(positions)
        self._replay()
        self._on(self._layers())
        return self._logits.clone()

    def _layers(self) -> list[CompactLayer]:
        return [layer for layer in self.cache.layers if isinstance(layer, CompactLayer)]


def _difference(found: Tensor, wanted: Tensor) -> tuple[float, int]:
    """The largest difference of logits [cells, V], of the largest number wanted, and how many cells
    have another highest one; NaN differs from NaN by nothing.
    """
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    gap = (found - wanted).abs().masked_fill(same, 0.0).max()
    largest = wanted.abs().nan_to_num(0.0, 0.0, 0.0).max()
    other = (found.argmax(-1) != wanted.argmax(-1)).sum()
    return float(gap / largest.clamp_min(torch.finfo(largest.dtype).tiny)), int(other)


def _grows(layer: object) -> bool:
    """Whether a step of the layer is the same work for the host every time."""
    return isinstance(layer, CompactLayer) and not layer.changing()
