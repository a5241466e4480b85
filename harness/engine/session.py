"""One prompt through all branches: prefill once, compact, decode in as few batches as fit.

The room's front door. It must not know lmms-eval, the grid or the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.engine.answers import Answers
from harness.engine.batches import Batches
from harness.engine.caches import tensors
from harness.engine.cells import Cell, plan, rotary_use
from harness.engine.decode import Decoder
from harness.engine.inputs import check, check_boundary, position_ids
from harness.engine.layout import prepare
from harness.engine.prefill import Prefill
from harness.engine.rotary import Rotary, forget_lengths, moves_frequencies
from harness.engine.selfcheck import check_split
from harness.engine.settings import (
    Branch,
    BranchResult,
    Generation,
    NoRoom,
    NotFinite,
    Protocol,
)
from harness.engine.sharing import Prefills
from harness.engine.sparsity import check_rows
from harness.models.memory import free_memory, ran_out
from harness.models.precision import stopped
from methods.kernels import require, using

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from harness.models.prompts import Prompt
    from harness.sparse import Pattern
    from methods import Policy

#: Of the free memory, what a batch may take: on a CPU others take of it as well.
SHARES = {"cuda": 0.8, "cpu": 0.5}
COPIES = 4  # of the entries of one layer, beside all that are kept
TRACED = 16_384  # tokens of the longest prompt that is traced: nobody looks at more


class Engine:
    """Runs prompts of one loaded model.

    cells_per_batch: how many branches decode together; `auto` takes all that memory allows. Where a
    batch does not fit, later ones take half of its bytes. kernels: who computes the policies and
    the attention to compacted caches, see methods.kernels.using. cuda_graphs: replay decoding steps
    of cells that do not hold their budget; `auto` does so on a CUDA device with kernels.
    share_prefixes: read what prompts have in common once, see `harness.engine.sharing`. prefill:
    the pattern by which prompts attend, see `harness.sparse`; None: dense.
    ValueError, one sentence, for models whose cache cannot be compressed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        protocol: Protocol | None = None,
        cells_per_batch: int | str = "auto",
        kernels: str = "auto",
        cuda_graphs: bool | str = "auto",
        share_prefixes: bool = True,
        prefill: Pattern | None = None,
    ) -> None:
        whole = isinstance(cells_per_batch, int) and not isinstance(cells_per_batch, bool)
        if cells_per_batch != "auto" and not (whole and int(cells_per_batch) >= 1):
            raise ValueError(
                f"cells_per_batch={cells_per_batch!r} is not allowed; give auto or a number from 1."
            )
        check_device(loaded.device, kernels, cuda_graphs)
        self.kernels = kernels
        self.loaded = loaded
        self.protocol = protocol or Protocol()
        self.model = loaded.model.eval()
        self.layout = prepare(self.model)
        graphs, self._without_graphs = self._graphs(cuda_graphs)
        self.decoder = Decoder(self.model, self.layout, loaded.stop_ids, loaded.decode, graphs)
        self.batches = Batches()
        self.pattern = prefill
        how = (share_prefixes, prefill, loaded.encode)
        self.prefills = Prefills(self.model, self.layout, *how)
        self._known_rotary: Rotary | None = None
        self.cells_per_batch: int | None = (
            None if cells_per_batch == "auto" else int(cells_per_batch)
        )
        self.most_bytes = inf  # of a batch, once one did not fit

    def _graphs(self, wanted: bool | str) -> tuple[bool, str]:
        """Whether to replay steps as CUDA graphs, and why not where that is not what was asked."""
        if wanted is False or self.loaded.device.type != "cuda":
            return False, ""
        if self.kernels == "torch":
            return False, "Decoding goes without CUDA graphs, which need engine.kernels=auto."
        if moves_frequencies(self.model):
            reason = (
                f"{type(self.model).__name__} changes its rotary frequencies with the length, so "
                "its decoding steps cannot be replayed"
            )
            if wanted is True:
                raise ValueError(f"{reason}; set cuda_graphs=false.")
            return False, f"{reason}: decoding goes without CUDA graphs."
        return True, ""

    def told(self) -> tuple[str, ...]:
        """What a person should know of how the answers so far were computed."""
        return tuple(filter(None, (self._without_graphs, self.decoder.failed)))

    @torch.inference_mode()
    def run(
        self,
        prompt: Prompt,
        branches: Sequence[Branch],
        generation: Generation,
        letters: Sequence[str] = (),
        trace: bool = False,
        stop: bool = True,
    ) -> list[BranchResult]:
        """Answers of all branches, in their order.

        trace: also tell which prompt tokens each branch kept and how the prompt looks, unless more
        than TRACED of them are in the cache at the eviction. stop: NotFinite, before anything is
        decoded, where the prompt's own pass is not finite, and where a full cache's answer is not;
        else such answers say so (`BranchResult.nonfinite_tokens`), as those of other branches do.
        ValueError, one sentence, for prompts and protocols that do not fit the model; NoRoom for
        what does not fit its memory.
        """
        answers, cells = self.prefilled(prompt, branches, generation, trace, stop)
        with using(self.kernels):
            answers.run_all(cells, self.loaded.letter_ids(letters))
        results = answers.results(cells, letters)
        pairs = zip(results, branches, strict=True)
        full = [one for one, branch in pairs if branch.policy is None and branch.cache is None]
        if stop and any(one.nonfinite_tokens for one in full):
            raise self._not_finite()
        return results

    @torch.inference_mode()
    def prefilled(
        self,
        prompt: Prompt,
        branches: Sequence[Branch],
        generation: Generation,
        trace: bool = False,
        stop: bool = True,
    ) -> tuple[Answers, list[Cell]]:
        """Read a prompt up to the eviction and let every policy select; what decodes the cells.

        Arguments and errors as of `run`.
        """
        if not branches:
            raise ValueError("no branches were given; give at least one, such as the full cache.")
        check(prompt.inputs)
        self._check_policies(prompt, branches)
        device = prompt.inputs["input_ids"].device
        modality = prompt.modality.to(device)
        boundary = self.boundary(prompt)
        check_boundary(modality, boundary)
        positions = position_ids(self.model, prompt.inputs, modality)
        cells = plan(branches, boundary)
        rotary = self._rotary(branches)
        with using(self.kernels):
            self._check_split(prompt, positions, boundary)
            with self._memory(boundary):
                wanted = (positions, modality, boundary, _requests(cells), rotary)
                filled = self.prefills.run(prompt, *wanted)
        if stop and not filled.finite:
            raise self._not_finite()
        trace = trace and boundary <= TRACED
        answers = Answers(self, prompt, positions, modality, boundary, generation, filled, trace)
        return answers, cells

    def check(self, prompt: Prompt) -> None:
        """Check that splitting such a prompt changes no answer, as `run` does before its first.

        ValueError, one sentence, where it does, see `harness.engine.selfcheck`.
        """
        positions = position_ids(self.model, prompt.inputs, prompt.modality)
        self._check_split(prompt, positions, self.boundary(prompt))

    def _check_split(self, prompt: Prompt, positions: Tensor, boundary: int) -> None:
        forget_lengths(self.model)
        with self._memory(boundary):
            kinds = prompt.modality
            check_split(self.model, self.layout, prompt.inputs, positions, kinds, boundary)

    @contextmanager
    def _memory(self, boundary: int) -> Iterator[None]:
        """Say in one sentence that a prompt does not fit."""
        try:
            yield
        except Exception as error:
            if not ran_out(error):
                raise
            raise NoRoom(
                f"a prompt of {boundary} tokens does not fit into memory with all its queries; "
                "use a shorter prompt, a smaller dtype or a larger device."
            ) from error

    def _not_finite(self) -> NotFinite:
        dtype = str(self.loaded.dtype).removeprefix("torch.")
        return NotFinite(stopped(self.loaded.name, dtype))

    def _rotary(self, branches: Sequence[Branch]) -> Rotary | None:
        """The model's rotary positions if a policy needs them, checked once."""
        use = rotary_use([branch.policy for branch in branches if branch.policy is not None])
        if use is None:
            return None
        if self._known_rotary is None:
            self._known_rotary = Rotary(self.model, self.layout, use)
        return self._known_rotary

    def _check_policies(self, prompt: Prompt, branches: Sequence[Branch]) -> None:
        policies = [branch.policy for branch in branches if branch.policy is not None]
        behind = max(0, self.boundary(prompt) - prompt.context) if prompt.context else 0
        check_rows(self.pattern, policies, prompt.suffix, behind)
        anchored = any(policy.params.get("window_anchor") == "question" for policy in policies)
        if anchored and self.protocol.name == "context":
            raise ValueError(
                "window_anchor=question watches the question, which protocol=context reads after "
                "the eviction; use window_anchor=end or another protocol."
            )

    def boundary(self, prompt: Prompt) -> int:
        """Number of prompt tokens in the cache when it is evicted."""
        length = prompt.inputs["input_ids"].shape[1]
        if self.protocol.name == "paper":
            return length
        if self.protocol.name == "replay":
            return length - (max(1, prompt.suffix) if self.protocol.tail == "suffix" else 1)
        if prompt.context is None or prompt.context >= length:
            raise ValueError(
                "protocol=context needs an image or a marked context before the question and "
                "this prompt has none; use protocol=replay."
            )
        return prompt.context

    def needs(self, filled: Prefill, entries: Sequence[int]) -> list[float]:
        """Bytes that each cell needs with at most so many entries a KV head."""
        sizes = [sum(each.nbytes for each in tensors(layer)) for layer in filled.cache.layers]
        evictable = {layer.index for layer in self.layout.layers}
        whole = sum(size for index, size in enumerate(sizes) if index not in evictable)
        token = (sum(sizes) - whole) / filled.cache.layers[min(evictable)].keys.shape[-2]
        # One layer at a time is gathered, grown and attended to: by copies, at worst of all of it.
        token *= 1 + COPIES / len(evictable)
        return [whole + count * token for count in entries]

    def batch_size(self, needs: Sequence[float], device: torch.device) -> int:
        """How many of these cells, from the first on, to decode together."""
        if self.cells_per_batch is not None:
            needs = needs[: self.cells_per_batch]
        room = min(SHARES[device.type] * free_memory(device), self.most_bytes)
        return max(1, sum(each <= room for each in accumulate(needs)))

    def did_not_fit(self, needs: Sequence[float]) -> None:
        """Take smaller batches from now on than one of these cells, and let go what is held."""
        self.most_bytes = sum(needs) / 2
        self.forget()

    def forget(self) -> None:
        """Hold nothing of earlier prompts any more."""
        self.prefills.forget()
        self.batches.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def check_device(device: torch.device, kernels: str, cuda_graphs: bool | str) -> None:
    """ValueError, one sentence, where a device cannot do what the engine is asked for."""
    require(kernels, device)
    if cuda_graphs not in (True, False, "auto"):
        raise ValueError(f"cuda_graphs={cuda_graphs!r} is not allowed; give auto, true or false.")
    if cuda_graphs is True and device.type != "cuda":
        raise ValueError(f"cuda_graphs=true needs a CUDA device, not {device.type}; set it false.")
    if cuda_graphs is True and kernels == "torch":
        raise ValueError(
            "cuda_graphs=true needs the kernels; set kernels=auto or cuda_graphs=false."
        )


def _requests(cells: Sequence[Cell]) -> list[tuple[Policy, list[int]]]:
    """Each policy once, with every distinct budget wanted of it."""
    wanted: dict[int, tuple[Policy, dict[int, None]]] = {}
    for cell in cells:
        policy = cell.branch.policy
        if policy is not None:
            wanted.setdefault(id(policy), (policy, {}))[1][cell.count] = None
    return [(policy, list(budgets)) for policy, budgets in wanted.values()]
