"""One family through `load` as a user has it: prompts, the engine and `harness.evict` against the
untouched model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Phi4MultimodalForCausalLM,
    PreTrainedModel,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

import harness
import methods
from harness.engine import Branch, Engine, Generation, Protocol
from harness.models import load
from harness.models.loaded import LoadedModel
from harness.models.prompts import Prompt
from methods import LayerView, Selection
from tests.families import oracle, text, vision, vision_last, vision_more, vision_other
from tests.families.base import randomised

TOKENS = 5
LETTERS = ("A", "B")
QUESTION = (
    "What is the color of the heart?\nA. pink\nB. blue\nC. green\nD. yellow\n"
    "Answer with the option's letter from the given choices directly."
)
CASES: dict[str, list[tuple[int, int]]] = {
    "one image": [(128, 128)], "two images": [(128, 128), (200, 90)], "text": [],
}  # fmt: skip
PARAMETERS = {"streaming_llm": {"decode": "grow"}, "snapkv": {"window": 8}}
METHODS = tuple(PARAMETERS)
OWN = {
    "Phi-4-multimodal": Phi4MultimodalForCausalLM,
    "Qwen2.5-Omni": Qwen2_5OmniThinkerForConditionalGeneration,
}
PICTURED = [
    name for part in (vision, vision_more, vision_other, vision_last) for name in part.FAMILIES
]
NAMES = {**dict.fromkeys(PICTURED, vision), **dict.fromkeys(text.CONFIGS, text)}


@dataclass
class Report:
    """What came of a family: how many comparisons agreed, and every sentence that refused one.

    layers: how many of the model's layers can be evicted from. worst: the largest difference of a
    logit. wrong: what did not agree.
    """

    name: str
    layers: tuple[int, int] = (0, 0)
    checks: int = 0
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def compare(self, what: str, found: Tensor, wanted: Tensor, most: float = 2e-4) -> None:
        """Note whether two tensors agree."""
        self.checks += 1
        far = float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
        self.worst = max(self.worst, far)
        if not far <= most:
            self.wrong.append(f"{what}: {far:.1e}")


class Recorded:
    """A policy that remembers what it kept of each layer."""

    def __init__(self, name: str) -> None:
        self.policy = methods.build(name, **PARAMETERS[name])
        self.kept: dict[tuple[int, int], Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def select_many(self, view: LayerView, budgets: list[int]) -> list[Selection]:
        found = self.policy.select_many(view, budgets)
        for budget, one in zip(budgets, found, strict=True):
            self.kept[view.layer, budget] = one.positions[0]
        return found

    def masks(self, budget: int, length: int) -> dict[int, Tensor]:
        """bool [Hkv, length] by the rank of each layer, True where kept."""
        rows = {rank: kept for (rank, count), kept in self.kept.items() if count == budget}
        found = {}
        for rank, kept in rows.items():
            empty = torch.zeros(len(kept), length, dtype=torch.bool)
            found[rank] = empty.scatter(1, kept, True)
        return found


def saved(name: str, top: Path) -> Path:
    """The folder of a family, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    model, processor = NAMES[name].build(name)
    folder = top / "".join(c if c.isalnum() else "_" for c in name)
    randomised(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def messages(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """The question behind images of these sizes."""
    parts: list[dict[str, Any]] = []
    for seed, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
        image = Image.fromarray(pixels.astype("uint8")).resize((width, height))
        parts.append({"type": "image", "url": image})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


def check(name: str, folder: Path) -> Report:
    """Everything that is asked of a family."""
    report = Report(name)
    try:
        loaded = load(str(folder), device="cpu", dtype="float32")
        layout = Engine(loaded).layout
    except ValueError as error:
        report.refused["load"] = str(error)
        return report
    usual = AutoModelForImageTextToText if loaded.takes_images else AutoModelForCausalLM
    kind = OWN.get(name, usual)
    plain = kind.from_pretrained(folder, dtype=torch.float32).eval()
    reader = (AutoProcessor if loaded.takes_images else AutoTokenizer).from_pretrained(folder)
    number = loaded.model.config.get_text_config(decoder=True).num_hidden_layers
    report.layers = (len(layout.layers) + len(layout.shared), number)
    for case, sizes in CASES.items():
        if loaded.takes_images or not sizes:
            _case(report, case, loaded, plain, reader, messages(sizes))
    return report


def _case(
    report: Report, case: str, loaded: LoadedModel, plain: PreTrainedModel, reader: Any, asked: Any
) -> None:
    """One prompt under every protocol."""
    try:
        prompt = loaded.prompt(asked)
    except ValueError as error:
        report.refused[case] = str(error)
        return
    inputs = own_inputs(reader, asked, loaded.takes_images) or prompt.inputs
    report.compare(f"{case}: tokens", prompt.inputs["input_ids"], inputs["input_ids"], 0)
    wanted = oracle.generate(plain, inputs, TOKENS)
    protocols = ["replay", "paper", *(["context"] if prompt.context else [])]
    for protocol in protocols:
        try:
            _protocol(report, case, protocol, loaded, plain, prompt, inputs, wanted)
        except ValueError as error:
            report.refused[f"{case}, {protocol}"] = str(error)


def own_inputs(reader: Any, asked: Any, images: bool) -> dict[str, Tensor] | None:
    """What transformers itself makes of the messages; None without a chat template."""
    if reader.chat_template is None:
        return None
    if not images:
        asked = [{"role": "user", "content": asked[0]["content"][-1]["text"]}]
    made = reader.apply_chat_template(
        asked, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    return {
        key: value.float() if value.is_floating_point() else value for key, value in made.items()
    }


def _protocol(
    report: Report,
    case: str,
    protocol: str,
    loaded: LoadedModel,
    plain: PreTrainedModel,
    prompt: Prompt,
    inputs: dict[str, Tensor],
    wanted: Tensor,
) -> None:
    """The full cache, and two methods at half of it, through the engine and inside generate."""
    engine = Engine(loaded, Protocol(protocol))
    boundary = engine.boundary(prompt)
    policies = [Recorded(name) for name in METHODS]
    branches = [Branch(), *(Branch(policy, ratio=0.5) for policy in policies)]
    results = engine.run(prompt, branches, Generation(TOKENS), LETTERS)
    ids = loaded.letter_ids(LETTERS)
    budget = boundary - int(0.5 * boundary)
    expected = [wanted]
    for policy in policies:
        kept = dict(_kept(engine, plain, policy.masks(budget, boundary)))
        with oracle.masked(plain, kept, boundary) as state:
            expected.append(oracle.generate(plain, inputs, TOKENS))
            if not state["hits"]:
                report.wrong.append(f"{case}, {protocol}: nothing was masked")
    for label, result, logits in zip(("full", *METHODS), results, expected, strict=True):
        what = f"{case}, {protocol}, {label}"
        found = torch.tensor([result.letter_logits[x] for x in LETTERS])
        report.compare(f"{what}: letters", found, logits[0, ids])
        said = torch.tensor(result.token_ids)
        report.compare(f"{what}: answer", said, logits.argmax(-1)[: len(said)], 0)
    for method, ratio, logits in ((policies[0], 0.5, expected[1]), ("restkv", 0.0, wanted)):
        with harness.evict(loaded.model, method, ratio=ratio, protocol=protocol):
            found = oracle.generate(loaded.model, inputs, TOKENS)
        report.compare(f"{case}, {protocol}, evict at {ratio}", found, logits, 1e-3)


def _kept(
    engine: Engine, plain: PreTrainedModel, masks: dict[int, Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Masks by the attention modules of the untouched model, those that share keys among them."""
    mine, theirs = attention_modules(engine.model), attention_modules(plain)
    for index, module in mine.items():
        layer = engine.layout.find(module) or engine.layout.shared.get(id(module))
        if layer is not None:
            yield id(theirs[index]), masks[layer.rank]


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The decoder's attention by layer."""
    return {
        module.layer_idx: module
        for module in model.get_decoder().modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and "Attention" in type(module).__name__
    }
