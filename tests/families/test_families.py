"""Every family is right or refused in one sentence, and docs/models.md says which."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from harness.engine import Branch, Engine, Generation, Protocol
from harness.models import load
from tests.families import checks, oracle, page, vision
from tests.families.checks import NAMES, Report, check, saved

#: One of each kind: images cut, nested, with marks of their own, without a template; windows,
#: recurrent and shared layers, an old projection; each sentence that refuses.
USUAL = (
    "Qwen2.5-VL", "LLaVA-OneVision", "Idefics3", "PaliGemma", "Qwen3.5", "Llama 3",
    "Phi-3, Phi-4", "Gemma 3n (text)", "Jamba", "GPT-2", "Gemma 2", "DeepSeek-V3", "GPT-OSS",
    "BLOOM", "Mamba 2", "Falcon", "Llama 4", "Ovis2", "GOT-OCR 2", "Llama 3.2 Vision",
    "Phi-4-multimodal", "Qwen2.5-Omni", "Fuyu", "Kimi K2.5", "Idefics",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_a_family_is_right_or_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    report = check(name, saved(name, tmp_path))
    assert report.wrong == []
    for said in report.refused.values():
        assert said.endswith(".")
        assert said.count(". ") == 0
        assert "\n" not in said
    assert page.row(report) in page.PATH.read_text(encoding="utf-8").splitlines()


def test_there_are_enough_families() -> None:
    assert len(vision.FAMILIES) >= 37
    assert len(NAMES) - len(vision.FAMILIES) >= 25
    assert {*USUAL} <= {*NAMES}


def test_a_family_that_answers_otherwise_is_seen(tmp_path: Path, monkeypatch) -> None:
    """One layer's mask is another's: the checks must fail."""
    true = checks._kept
    monkeypatch.setattr(
        checks, "_kept", lambda *given: ((place, kept.flip(-1)) for place, kept in true(*given))
    )
    assert len(check("Llama 3", saved("Llama 3", tmp_path)).wrong) > 4


def test_a_refusal_stands_in_the_page_without_places_of_this_machine() -> None:
    report = Report("x", refused={"text": "the processor of /tmp/a/b cannot read it: `x`; do y."})
    assert "/tmp" not in page.row(report)


@pytest.mark.parametrize("name", ["Llama 3", "PaliGemma"])
def test_a_given_template_takes_the_place_of_the_models_own(name: str, tmp_path: Path) -> None:
    folder = str(saved(name, tmp_path))
    form = "{% for m in messages %}<image>{{ m['content'] }}{% endfor %} So?"
    asked = [{"role": "user", "content": "What is it?"}]
    loaded = load(folder, device="cpu", dtype="float32", chat_template=form)
    assert loaded.rendered(asked).endswith(" So?")
    assert not load(folder, device="cpu", dtype="float32").rendered(asked).endswith(" So?")


def test_without_a_template_images_stand_before_the_plain_text(tmp_path: Path) -> None:
    loaded = load(str(saved("PaliGemma", tmp_path)), device="cpu", dtype="float32")
    asked = checks.messages([(32, 32), (32, 32)])
    assert loaded.rendered(asked) == "<image><image>" + checks.QUESTION
    assert int(loaded.prompt(asked).modality.sum()) == 2 * 16


def test_a_video_is_read_as_generate_reads_it(tmp_path: Path) -> None:
    folder = saved("Qwen2-VL", tmp_path)
    loaded = load(str(folder), device="cpu", dtype="float32")
    frames = np.random.default_rng(0).integers(0, 256, (4, 56, 84, 3)).astype("uint8")
    asked = [
        {
            "role": "user",
            "content": [{"type": "video", "url": frames}, {"type": "text", "text": "?"}],
        }
    ]
    prompt = loaded.prompt(asked)
    reader = AutoProcessor.from_pretrained(folder)
    own = reader(text=[loaded.rendered(asked)], videos=[[frames]], return_tensors="pt")
    assert torch.equal(prompt.inputs["input_ids"], own["input_ids"])
    assert (
        int(prompt.modality.sum())
        == int((own["input_ids"] == loaded.model.config.video_token_id).sum())
        > 0
    )
    (result,) = Engine(loaded).run(prompt, [Branch()], Generation(4))
    logits = oracle.generate(loaded.model, dict(own), 4)
    assert result.token_ids == logits.argmax(-1)[: len(result.token_ids)].tolist()


def test_layers_that_share_keys_read_several_tokens_behind_the_eviction(tmp_path: Path) -> None:
    folder = saved("Gemma 3n (text)", tmp_path)
    loaded = load(str(folder), device="cpu", dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = replace(loaded.prompt(checks.messages([])), context=40)
    engine, policy = Engine(loaded, Protocol("context")), checks.Recorded("snapkv")
    (result,) = engine.run(prompt, [Branch(policy, budget=10)], Generation(4), checks.LETTERS)
    assert engine.layout.shared
    kept = dict(checks._kept(engine, plain, policy.masks(10, 40)))
    with oracle.masked(plain, kept, 40):
        wanted = oracle.generate(plain, prompt.inputs, 4)
    found = torch.tensor([result.letter_logits[x] for x in checks.LETTERS])
    torch.testing.assert_close(
        found, wanted[0, loaded.letter_ids(checks.LETTERS)], rtol=0, atol=2e-4
    )
