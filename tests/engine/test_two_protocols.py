"""Two protocols on one device: what one holds of earlier prompts is no room of the other's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_chat import TEMPLATE, WORDS, ask
from tiny_models import build_llama, make_tokenizer

from harness.engine import NoRoom, sharing
from harness.scoring.bridge import Bridge
from harness.settings.config import ModelConfig, ProtocolConfig
from harness.settings.grid import Cell

MESSAGES = ask(" ".join(WORDS), " w3 w4", marked=0)
HOW = ({"max_new_tokens": 3, "do_sample": False}, [])


@pytest.fixture
def bridge(tmp_path: Path) -> Bridge:
    build_llama().save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    return Bridge(ModelConfig("tiny", str(tmp_path)), ProtocolConfig("both"), "cpu", "float32")


def cells(protocol: str) -> list[Cell]:
    full = Cell("full", "full", protocol=protocol)
    return [full, Cell("random", "random", ratio=0.5, protocol=protocol)]


def test_what_the_other_protocol_holds_is_let_go_before_a_prompt_does_not_fit(bridge, monkeypatch):
    wanted = [one.text for one in bridge.answer(MESSAGES, cells("replay"), *HOW)]
    bridge.answer(MESSAGES, cells("context"), *HOW)
    held = bridge.engines["context", "dense"].prefills._held
    assert held
    own = sharing.prefill

    def full(*args):
        if held:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(*args)

    monkeypatch.setattr(sharing, "prefill", full)
    found = bridge.answer(MESSAGES, cells("replay"), *HOW)
    assert not held
    assert [one.text for one in found] == wanted


def test_a_prompt_that_fits_under_no_circumstances_is_refused(bridge, monkeypatch):
    def never(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sharing, "prefill", never)
    with pytest.raises(NoRoom, match="does not fit into memory"):
        bridge.answer(MESSAGES, cells("replay"), *HOW)


def test_each_cell_is_evicted_when_its_protocol_says(bridge):
    prompt = bridge.prompt(MESSAGES, HOW[0])
    length = prompt.inputs["input_ids"].shape[1]
    evictable = {
        protocol: {one.evictable_tokens for one in bridge.answer(prompt, cells(protocol), *HOW)}
        for protocol in ("replay", "context")
    }
    assert prompt.context is not None
    assert prompt.context < length - 1
    assert evictable == {"replay": {length - 1}, "context": {prompt.context}}
