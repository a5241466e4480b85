"""Every family is right or refused in one sentence, and docs/models.md says which."""

from pathlib import Path

import pytest

from tests.families import page, vision
from tests.families.checks import NAMES, Report, check, saved

#: One of each kind: images cut, nested, with marks of their own, without a template; windows,
#: recurrent and shared layers, an old projection; each sentence that refuses.
USUAL = (
    "Qwen2.5-VL", "LLaVA-OneVision", "Idefics3", "PaliGemma", "Qwen3.5", "Llama 3",
    "Phi-3, Phi-4", "Gemma 3n (text)", "Jamba", "GPT-2", "Gemma 2", "DeepSeek-V3", "GPT-OSS",
    "BLOOM", "Mamba 2", "Falcon", "Llama 4", "Ovis2", "GOT-OCR 2", "Llama 3.2 Vision",
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
    assert len(vision.FAMILIES) >= 32
    assert len(NAMES) - len(vision.FAMILIES) >= 25
    assert {*USUAL} <= {*NAMES}


def test_a_family_that_answers_otherwise_is_seen(tmp_path: Path, monkeypatch) -> None:
    """One layer's mask is another's: the checks must fail."""
    from tests.families import checks

    true = checks._kept
    monkeypatch.setattr(
        checks, "_kept", lambda *given: ((place, kept.flip(-1)) for place, kept in true(*given))
    )
    assert len(check("Llama 3", saved("Llama 3", tmp_path)).wrong) > 4


def test_a_refusal_stands_in_the_page_without_places_of_this_machine() -> None:
    report = Report("x", refused={"text": "the processor of /tmp/a/b cannot read it: `x`; do y."})
    assert "/tmp" not in page.row(report)
