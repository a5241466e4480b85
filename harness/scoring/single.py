"""One cell as a model of lmms-eval's own command line: `lmms-eval --model evictbench ...`.

Knows lmms-eval's requests and one cell; must not know sweeps or the store.
"""

import sys
from dataclasses import replace
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from harness.engine import NoRoom, NotFinite
from harness.errors import UserError
from harness.models.precision import rerun
from harness.scoring.bridge import Bridge
from harness.settings import labels
from harness.settings.config import EngineConfig, ModelConfig, ProtocolConfig
from harness.settings.grid import DENSE, FULL, Cell, Variant
from harness.settings.prefills import check_rows, prefills
from harness.settings.variants import check_stored, variant
from harness.sparse import build


class EvictBench(lmms):
    """A model whose prompt cache is evicted by one method at one ratio or budget.

    model_args: pretrained, revision, method (default: the full cache; a label of conf/method such
    as restkv_nospatial is one too), ratio (evicted fraction) or budget (kept tokens), protocol,
    tail, prefill (dense, or the name of a pattern with its published parameters), dtype, kernels
    (auto, triton, torch), as in the sweep's model settings max_length and max_prompt (tokens) and
    tile (pixels), and cache (quantized, pq_keys, host_values) with cache_bits and so on. Any
    parameter of the method goes by its name, but for one: its parameter `budget`, how layers and
    heads share the kept tokens, is called `rule` here (rule=pyramid), because budget=16 is their
    number.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str = FULL,
        ratio: float | None = None,
        budget: int | None = None,
        protocol: str = "replay",
        tail: str = "last_token",
        prefill: str = DENSE,
        rule: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        kernels: str = "auto",
        max_length: int | None = None,
        max_prompt: int | None = None,
        tile: int | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **params: Any,
    ) -> None:
        """Validate the cell, then load the model.

        Raises:
            UserError: a value is outside what is allowed.
        """
        super().__init__()
        if str(batch_size) != "1" or max_batch_size not in (None, 1):
            raise UserError(
                f"batch_size={batch_size} is not supported: prompts are prefilled one by one, "
                "leave it at 1."
            )
        if protocol == "both":
            raise UserError("protocol=both is for sweeps: choose replay, context or paper.")
        self.told = False
        cell = single_cell(method, ratio, budget, params, rule)
        (read,) = prefills({prefill: {"pattern": prefill}})
        check_rows([read], [Variant(cell.label, cell.method, cell.params)])
        self.cell = replace(cell, protocol=protocol, prefill=read.label, pattern=read.pattern)
        model = ModelConfig(pretrained, pretrained, revision, False, trust_remote_code)
        model.max_length, model.max_prompt, model.tile = max_length, max_prompt, tile
        rules, chosen = ProtocolConfig(protocol, tail), EngineConfig(kernels=kernels)
        patterns = {prefill: build(prefill)}
        self.bridge = Bridge(model, rules, device or "auto", dtype, chosen, patterns)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request from the evicted cache."""
        bar = tqdm(requests, desc="evictbench", unit="row", ncols=100, file=sys.stderr)
        return [self._answer(request) for request in bar]

    def _answer(self, request: Instance) -> GenerationResult:
        _, doc_to_messages, generation, position, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][position])
        try:
            result = self.bridge.answer(messages, [self.cell], generation, ())[0]
        except (NoRoom, NotFinite) as error:
            raise UserError(f"task={task}, document {position}: {error}") from error
        if result.nonfinite_tokens:
            dtype = str(self.bridge.loaded.dtype).removeprefix("torch.")
            raise UserError(
                f"task={task}, document {position}: {self.cell.label} gives numbers that are not "
                f"finite (NaN or infinite) in {dtype} and has no answer there: {rerun(dtype)}."
            )
        if result.fallback and not self.told:
            self.told = True
            method, kept = self.cell.method, f"{result.kept_tokens:.0f} tokens were kept"
            tqdm.write(
                f"note: {method} did not fit a prompt ({result.fallback}); {kept}", sys.stderr
            )
        counts = TokenCounts(result.prompt_tokens, len(result.token_ids))
        return GenerationResult(result.text, counts)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: an evicted cache is about generated tokens."""
        raise UserError("evictbench answers generate_until tasks only: choose one of those.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: a second round would need the cache of the first."""
        raise UserError("evictbench answers single-round tasks only: choose one of those.")


def single_cell(
    method: str,
    ratio: float | None,
    budget: int | None,
    params: dict[str, Any],
    rule: str | None = None,
) -> Cell:
    """The cell that model_args describe; `rule` is the method's own parameter `budget`.

    Raises:
        UserError: unknown method or parameter, a value out of range, or not exactly one amount.
    """
    if isinstance(budget, str):
        raise UserError(
            f"budget={budget} is not a number of kept tokens: write rule={budget} for how layers "
            "and heads share them."
        )
    name, preset = labels.resolve(method)
    given = {"method": name, **preset, **params} | ({} if rule is None else {"budget": rule})
    chosen = variant(method, given)
    check_stored(chosen)
    if chosen.method == FULL:
        stored = chosen.params
        return Cell(chosen.label, FULL, stored, ratio=0.0) if stored else Cell(FULL, FULL)
    if (ratio is None) == (budget is None):
        raise UserError(
            f"method={method} needs exactly one of ratio (evicted fraction) and budget (kept "
            "tokens): add ratio=0.9, for example."
        )
    ratios, budgets = amounts(ratio, budget)
    return Cell(chosen.label, chosen.method, chosen.params, ratios, budgets)


def amounts(ratio: float | None, budget: int | None) -> tuple[float | None, int | None]:
    """Check one ratio or budget by the rules of the sweep."""
    from harness.settings.amounts import amounts as checked

    ratios, budgets = checked(
        None if ratio is None else [ratio], None if budget is None else [budget]
    )
    return (ratios[0], None) if ratios else (None, budgets[0])
