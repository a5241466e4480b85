"""Cells in, engine results out: builds policies and prompts and calls the engine.

Knows cells, the engine's front door and the registry of methods; must not know lmms-eval or the
store.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import methods
from harness.engine import (
    Branch,
    BranchResult,
    Engine,
    Generation,
    NoRoom,
    NotFinite,
    Protocol,
    check_device,
    contexts,
    masked,
)
from harness.engine.layout import Layout
from harness.engine.masked import Compared
from harness.errors import UserError
from harness.models import crops, devices, loading
from harness.models.memory import ran_out
from harness.models.prompts import Prompt
from harness.models.segments import Texts
from harness.settings import caches
from harness.settings.checks import template_of
from harness.settings.config import EngineConfig, ModelConfig, ProtocolConfig
from harness.settings.grid import DENSE, FULL, Cell
from harness.sparse import Pattern


class Bridge:
    """A loaded model that answers chat messages for many cells at once."""

    def __init__(
        self,
        model: ModelConfig,
        protocol: ProtocolConfig,
        device: str = "auto",
        dtype: str = "auto",
        engine: EngineConfig | None = None,
        prefills: Mapping[str, Pattern | None] | None = None,
    ) -> None:
        """Load the model; prefills: the patterns of cells by label, None for dense.

        Raises:
            UserError: it cannot be loaded, or lacks what the engine needs.
        """
        engine = engine or EngineConfig()
        self.max_length, self.max_prompt = model.max_length, model.max_prompt
        self.tile = model.tile
        try:
            check_device(devices.device_of(device), engine.kernels, engine.cuda_graphs)
            self.loaded = loading.load(
                model.pretrained,
                revision=model.revision,
                device=device,
                dtype=dtype,
                trust_remote_code=model.trust_remote_code,
                rehearse=True,
                chat_template=template_of(model),
            )
            self.engines = {
                (each.name, label): Engine(
                    self.loaded,
                    Protocol(each.name, each.tail),
                    engine.cells_per_batch,
                    engine.kernels,
                    engine.cuda_graphs,
                    engine.share_prefixes,
                    pattern,
                )
                for each in protocol.each()
                for label, pattern in (prefills or {DENSE: None}).items()
            }
        except (OSError, ValueError) as error:
            raise UserError(f"model={model.name}: {error}") from error
        devices.use_threads(self.loaded, engine.threads)
        self._policies: dict[tuple[str, tuple[tuple[str, object], ...]], methods.Policy] = {}

    def prompt(
        self,
        messages: list[dict[str, Any]],
        generation: Mapping[str, Any],
        texts: Texts | None = None,
    ) -> Prompt:
        """Make of messages what `answer` takes too; another thread may call it meanwhile.

        Arguments and errors as of `answer`.
        """
        with self._saying():
            return self._prompt(messages, Generation.from_kwargs(generation), texts)

    def answer(
        self,
        messages: list[dict[str, Any]] | Prompt,
        cells: Sequence[Cell],
        generation: Mapping[str, Any],
        letters: Sequence[str],
        texts: Texts | None = None,
        trace: bool = False,
    ) -> list[BranchResult]:
        """Prefill once and decode every cell; results in the order of the cells.

        Args:
            messages: the prompt in lmms-eval's protocol, or as `prompt` made it.
            cells: what to decode, all under one protocol and prefill.
            generation: lmms-eval's generation arguments.
            letters: whose logits at the first answer token are wanted.
            texts: what the prompt's segments tell apart.
            trace: also tell which tokens each cell kept and how the prompt looks.

        Raises:
            NoRoom: there is not enough memory for this prompt.
            NotFinite: the full cache's numbers are not finite; a control's may be.
            UserError: the model, the prompt or a generation argument is not supported.
        """
        with self._saying():
            wanted = Generation.from_kwargs(generation)
            prompt = (
                messages if isinstance(messages, Prompt) else self._prompt(messages, wanted, texts)
            )
            branches = [self._branch(cell) for cell in cells]
            stop = any(cell.control == "none" for cell in cells)
            engine = self._engine(cells)
            how = (prompt, branches, wanted, letters, trace, stop)
            try:
                return engine.run(*how)
            except NoRoom:
                if len(self.engines) == 1:
                    raise
            for other in self.engines.values():
                other.forget()  # what it holds is on the same device
            return engine.run(*how)

    @property
    def layout(self) -> Layout:
        """How the model's cache is laid out."""
        return next(iter(self.engines.values())).layout

    def told(self) -> tuple[str, ...]:
        """What a person should know of how the answers so far were computed."""
        return tuple(dict.fromkeys(s for one in self.engines.values() for s in one.told()))

    def measure(
        self,
        messages: list[dict[str, Any]],
        generation: Mapping[str, Any],
        texts: Texts | None = None,
        cells: Sequence[Cell] = (),
    ) -> tuple[int, int]:
        """Tokens of a prompt, and how many it lost to fit; arguments and errors as of `answer`.

        cells: of any protocol and prefill; what they would refuse of the prompt is refused.
        """
        with self._saying():
            prompt = self._prompt(messages, Generation.from_kwargs(generation), texts)
            for under, engine in self.engines.items():
                own = [cell for cell in cells if (cell.protocol, cell.prefill) == under]
                contexts.check(engine, prompt, [self._branch(cell) for cell in own])
            return prompt.modality.shape[0], prompt.cut

    def compare(
        self,
        messages: list[dict[str, Any]],
        cells: Sequence[Cell],
        generation: Mapping[str, Any],
        texts: Texts | None = None,
    ) -> Compared:
        """Hold cells against the model with its attention masked; arguments and errors as of
        `answer`.
        """
        with self._saying():
            prompt = self._prompt(messages, Generation.from_kwargs(generation), texts)
            branches = [self._branch(cell) for cell in cells]
            return masked.compare(self._engine(cells), prompt, branches)

    def _engine(self, cells: Sequence[Cell]) -> Engine:
        """The one that reads and evicts as these cells say."""
        (own,) = {(cell.protocol, cell.prefill) for cell in cells}
        return self.engines[own]

    def _prompt(
        self, messages: list[dict[str, Any]], wanted: Generation, texts: Texts | None
    ) -> Prompt:
        shown = crops.cut(messages, self.tile)
        return self.loaded.prompt(shown, self._room(wanted), self.max_prompt, texts)

    @contextmanager
    def _saying(self) -> Iterator[None]:
        """UserError in place of what the model or the engine refuses."""
        try:
            yield
        except (NoRoom, NotFinite):
            raise
        except ValueError as error:
            raise UserError(str(error)) from error
        except Exception as error:
            if not ran_out(error):
                raise
            raise NoRoom(
                f"model={self.loaded.name} has not enough memory for this prompt; use a shorter "
                "one, a smaller dtype or a larger device."
            ) from error

    def _room(self, wanted: Generation) -> int | None:
        """Tokens that a prompt may have beside its answer; None where the model sets no limit."""
        limit = self.max_length or self.loaded.context_limit
        if limit is None:
            return None
        if limit <= wanted.max_new_tokens:
            raise ValueError(
                f"{limit:,} tokens of context leave no prompt beside {wanted.max_new_tokens:,} new "
                "tokens; set a larger model.max_length or a smaller max_new_tokens."
            )
        return limit - wanted.max_new_tokens

    def _branch(self, cell: Cell) -> Branch:
        """Cells of one method with the same parameters share a policy object, so that it measures a
        layer once, however they store what they keep.
        """
        own, cache = caches.parted(dict(cell.params))
        if cell.method == FULL:
            return Branch(cache=cache)
        key = (cell.method, tuple(own.items()))
        if key not in self._policies:
            self._policies[key] = methods.build(cell.method, **own)
        return Branch(self._policies[key], cell.ratio, cell.budget, cache)
