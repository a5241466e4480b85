"""A model of parts: a text model, a tower and an adapter give what the adapter gave in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_gguf import SPECIAL, write_llama

import methods
from harness.embedded import TINY_VLM
from harness.engine import Branch, Engine, Generation
from harness.errors import UserError
from harness.models import gguf, joining, parts
from harness.models.hub import locate
from harness.models.identity import identify
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from tests.installed import install

CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
RANK, SCALE = 3, 1.5
PICTURE = Image.new("RGB", (128, 128), "red")
QUESTION = "What is the color?"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    words = [*SPECIAL, joining.UNUSED]
    folder = tmp_path_factory.mktemp("gguf")
    return write_llama(folder / "text.gguf", template=CHAT, special=words).read_bytes()


@pytest.fixture
def made(original: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of parts beside the tower's, the text model in a package, no adapter yet."""
    monkeypatch.setenv("EVICTBENCH_CACHE", str(tmp_path / "cache"))
    install(tmp_path / "site", "tiny-text", {"text.gguf": original})
    monkeypatch.syspath_prepend(tmp_path / "site")
    shutil.copytree(TINY_VLM, tmp_path / "tower")
    folder = tmp_path / "seeing"
    folder.mkdir()
    named = {"text": "package:tiny-text", "pictures": "tower"}
    (folder / parts.PARTS).write_text(json.dumps(named))
    return folder


def trained(folder: Path) -> torch.nn.Module:
    """The model with peft's own adapter of random numbers, which also go into the folder."""
    text = gguf.unpacked("package:tiny-text")
    assert text is not None
    model = joining.untrained(text[0], TINY_VLM, seed=3)
    names = r".*language_model\.layers.*_proj"
    config = peft.LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=names)
    peft.inject_adapter_in_model(config, model)
    kept = {}
    for name, p in model.model.named_parameters():
        if "lora_" in name or "projector" in name:
            torch.nn.init.normal_(p, std=0.2)
            kept[name.replace(".default.weight", "")] = p.detach().clone()
    save_file(kept, folder / parts.ADAPTER, metadata={"scale": str(SCALE)})
    return model.eval()


def asked(loaded: LoadedModel) -> dict:
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    said = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert said == f"<|im_start|>user\n<image>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    return dict(loaded.processor(text=[said], images=[PICTURE], return_tensors="pt"))


def test_joined_it_says_what_the_trained_model_says(made: Path) -> None:
    model = trained(made)
    loaded = load(str(made), device="cpu", dtype="float32", rehearse=True)
    assert loaded.takes_images
    inputs = asked(loaded)
    with torch.inference_mode():
        right, own = model(**inputs).logits, loaded.model(**inputs).logits
        bare = joining.untrained(gguf.unpacked("package:tiny-text")[0], TINY_VLM)(**inputs).logits
    torch.testing.assert_close(own, right, rtol=1e-4, atol=1e-4)
    assert (bare - right).abs().max() > 0.1
    turn = {
        "role": "user",
        "content": [{"type": "image", "url": PICTURE}, {"type": "text", "text": QUESTION}],
    }
    prompt = loaded.prompt([turn])
    assert prompt.inputs["input_ids"].equal(inputs["input_ids"])
    cells = [Branch(), Branch(methods.build("snapkv", window=4), ratio=0.5)]
    answer, shorter = Engine(loaded).run(prompt, cells, Generation(8))
    with torch.inference_mode():
        said = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
    assert list(answer.token_ids) == said[inputs["input_ids"].shape[1] :].tolist()
    assert shorter.token_ids


def test_it_is_joined_once_and_known_by_every_part(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(made)
    capsys.readouterr()
    source = locate(str(made))
    assert f"joining the parts of seeing once, into {source.folder}" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr(joining, "write", None)
        assert locate(str(made)) == source
    assert identify(str(made)) == source.sha256 == source.fingerprint()
    numbers = load_file(made / parts.ADAPTER)
    save_file(numbers, made / parts.ADAPTER, metadata={"scale": "2"})
    assert identify(str(made)) != source.sha256
    save_file(numbers, made / parts.ADAPTER, metadata={"scale": str(SCALE)})
    assert identify(str(made)) == source.sha256
    config = made.parent / "tower" / "processor_config.json"
    config.write_text(config.read_text() + " ")
    assert identify(str(made)) != source.sha256


def refused(made: Path, said: str) -> None:
    with pytest.raises(UserError) as caught:
        identify(str(made))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    models = made.parent / "cache" / "models"
    assert [p for p in models.iterdir() if p.name.startswith(".")] == []


def test_what_is_absent_or_does_not_fit_is_one_sentence(made: Path) -> None:
    refused(made, parts.ADAPTER)
    trained(made)
    numbers = load_file(made / parts.ADAPTER)
    whole = (made / parts.ADAPTER).read_bytes()
    lost = next(name for name in sorted(numbers) if name.endswith("lora_B"))
    fewer = {name: tensor for name, tensor in numbers.items() if name != lost}
    save_file(fewer, made / parts.ADAPTER, metadata={"scale": "1"})
    refused(made, lost)
    save_file({**numbers, lost: torch.zeros(5, RANK)}, made / parts.ADAPTER, {"scale": "1"})
    refused(made, "the adapter")
    (made / parts.ADAPTER).write_bytes(whole[: len(whole) // 2])
    refused(made, "the adapter")
    (made / parts.ADAPTER).write_bytes(whole)
    (made / parts.PARTS).write_text('{"text": "package:tiny-text"}')
    refused(made, "names no pictures")
    (made / parts.PARTS).write_text('{"text": "package:absent-text", "pictures": "tower"}')
    refused(made, "pip install absent-text")


def test_a_text_model_without_a_token_to_spare_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(made)
    file = write_llama(tmp_path / "other.gguf", template=CHAT)
    install(tmp_path / "more", "other-text", {"other.gguf": file.read_bytes()})
    monkeypatch.syspath_prepend(tmp_path / "more")
    named = {"text": "package:other-text", "pictures": "tower"}
    (made / parts.PARTS).write_text(json.dumps(named))
    refused(made, f"no unused token {joining.UNUSED}")
