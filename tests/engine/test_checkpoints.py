"""Model folders with one fault: refused in one sentence, before the weights where that can be."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from broken_folders import INTACT, NAMES, READ, UNREAD
from folder_faults import OUR_CODE, RAISES, Fault, remote, tensors
from tiny_models import build_llama, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, dynamic_module_utils

import harness
from harness.models import configs, hub, rehearsal
from harness.models.checkpoint import Checkpoint
from harness.models.loaded import LoadedModel
from harness.models.loading import load

TINY_VLM = Path(harness.__file__).parent / "embedded" / "tiny_vlm"
Copied = Callable[[Fault], Path]


@pytest.fixture
def copied(tmp_path: Path) -> Copied:
    """A copy of the embedded model with a fault."""

    def make(fault: Fault) -> Path:
        folder = tmp_path / "a_model"
        shutil.copytree(TINY_VLM, folder)
        fault(folder)
        return folder

    return make


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "weights", lambda *_: pytest.fail("the weights were read"))


def refusal(folder: Path | str, **options: object) -> str:
    """The one sentence that a folder is refused with."""
    with pytest.raises(ValueError) as caught:
        load(str(folder), device="cpu", rehearse=True, **options)
    said = str(caught.value)
    assert said.endswith(".")
    assert "\n" not in said
    assert "Traceback" not in said
    return said


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("fault", [*UNREAD, *NAMES])
def test_what_needs_no_weights_is_refused_before_them(copied: Copied, fault: str) -> None:
    broken, part = {**UNREAD, **NAMES}[fault]
    folder = copied(broken)
    said = refusal(folder)
    assert re.search(part, said), said
    assert str(folder) in said


@pytest.mark.parametrize("fault", READ)
def test_what_only_the_weights_tell_is_refused(copied: Copied, fault: str) -> None:
    broken, part = READ[fault]
    assert re.search(part, said := refusal(copied(broken))), said


def first_logits(folder: Path) -> torch.Tensor:
    loaded = load(str(folder), device="cpu", dtype="float32", rehearse=True)
    with torch.inference_mode():
        return loaded.model(**rehearsal.prompt(loaded).inputs).logits


@pytest.fixture(scope="module")
def intact() -> torch.Tensor:
    return first_logits(TINY_VLM)


@pytest.mark.parametrize("way", INTACT)
def test_the_same_model_saved_in_another_way_is_the_same(
    copied: Copied, intact: torch.Tensor, way: str
) -> None:
    assert torch.equal(first_logits(copied(INTACT[way])), intact)


def test_half_precision_on_disk_is_what_it_was_rounded_to(copied: Copied) -> None:
    rounded = tensors(lambda h: h.update({k: v.bfloat16() for k, v in h.items()}))
    folder = copied(rounded)
    found = first_logits(folder)
    tensors(lambda h: h.update({k: v.float() for k, v in h.items()}))(folder)
    assert torch.equal(found, first_logits(folder))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    config = LlamaConfig(**{**build_llama().config.to_dict(), "tie_word_embeddings": True})
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_tied_head_needs_no_tensor_and_an_untied_one_does(tied: Path) -> None:
    loaded = load(str(tied), device="cpu")
    head = loaded.model.get_output_embeddings().weight
    assert head is loaded.model.get_input_embeddings().weight
    config = (tied / "config.json").read_text()
    (tied / "config.json").write_text(config.replace('embeddings": true', 'embeddings": false'))
    assert "1 tensor is missing (lm_head.weight)" in refusal(tied)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A place of its own for the code of checkpoints."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        yield


@pytest.mark.usefixtures("modules", "unread")
@pytest.mark.parametrize("code", RAISES)
def test_whatever_code_of_a_checkpoint_raises_is_one_sentence(copied: Copied, code: str) -> None:
    assert "cannot be loaded: config.json" in refusal(copied(remote(code)), trust_remote_code=True)


def own_code(folder: Path, config: str = "", model: str = "") -> Path:
    """A checkpoint that comes with its own code."""
    build_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    held = LlamaConfig.from_pretrained(folder).to_dict()
    remote(OUR_CODE.format(config=config or "pass", model=model or "pass"), held)(folder)
    return folder


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("def __init__(self, config): raise SystemExit('bye')", r"ends the program \(bye\)"),
        ("def forward(self, **inputs): raise SystemExit(0)", "cannot read a first prompt"),
        (
            "def __init__(self, config):\n"
            "        super().__init__(config)\n"
            "        self.register_buffer('scale', torch.ones(3), persistent=False)",
            r"leaves 1 tables unset \(scale\)",
        ),
    ],
)
def test_models_with_code_of_their_own_are_refused(tmp_path: Path, model: str, part: str) -> None:
    folder = own_code(tmp_path / "ours", model=model)
    assert re.search(part, said := refusal(folder, trust_remote_code=True)), said


@pytest.mark.usefixtures("modules")
def test_a_model_with_code_of_its_own_loads_where_that_is_trusted(tmp_path: Path) -> None:
    folder = own_code(tmp_path / "ours")
    loaded = load(str(folder), device="cpu", trust_remote_code=True, rehearse=True)
    assert type(loaded.model).__name__ == "OurModel"
    assert "set model.trust_remote_code=true" in refusal(folder)


def named(fields: dict[str, object]) -> Fault:
    """A config.json with other fields."""

    def fault(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return fault


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("auto", ["AutoConfig", "AutoModelForCausalLM", "AutoModel"])
def test_code_for_a_model_unknown_to_transformers_needs_leave(copied: Copied, auto: str) -> None:
    """As Kimi-VL's folder, whose weights a known class must not be tried on."""
    fields = {"model_type": "kimi_vl", "auto_map": {auto: "modeling_kimi_vl.Kimi"}}
    said = refusal(copied(named(fields)))
    assert "set model.trust_remote_code=true" in said
    assert "custom code" in said


@pytest.mark.usefixtures("unread")
def test_code_for_a_config_that_is_no_language_model_needs_leave(copied: Copied) -> None:
    fields = {"model_type": "clip", "auto_map": {"AutoModelForCausalLM": "m.Ours"}}
    assert "set model.trust_remote_code=true" in refusal(copied(named(fields)))


def test_a_model_known_to_transformers_is_read_by_its_own_class(copied: Copied) -> None:
    folder = copied(named({"auto_map": {"AutoConfig": "m.Config", "AutoModel": "m.Model"}}))
    assert type(load(str(folder), device="cpu").model).__module__.startswith("transformers.")


@pytest.mark.usefixtures("modules", "unread")
def test_images_are_not_shown_to_code_of_a_checkpoint(tmp_path: Path) -> None:
    folder = own_code(tmp_path / "ours", config="vision_config = {}")
    assert "images can be shown only" in refusal(folder, trust_remote_code=True)


def test_places_that_are_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "is a file" in refusal(tmp_path / "file")
    assert "symbolic links" in refusal(tmp_path / "loop")
    assert "too long" in refusal(tmp_path / ("n" * 300))
    assert "null byte" in refusal(f"{tmp_path}/a\0b")
    assert "does not exist" in refusal(tmp_path / "file" / "inside")
    assert "cannot be opened" in refusal("~nobody_of_this_name/model")


@pytest.mark.parametrize("closed", [".", "config.json", "model.safetensors"])
def test_files_that_may_not_be_read_are_named(closed: str) -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        folder = shutil.copytree(TINY_VLM, Path(above) / "a_model")
        place = folder / closed
        place.chmod(0)
        if user == 0:
            os.seteuid(65534)  # root may read everything
        try:
            said = refusal(folder)
        finally:
            os.seteuid(user)
            place.chmod(0o755)
    assert "Permission denied" in said
    assert str(place) in said


def test_a_snapshot_without_all_its_shards_is_not_complete(
    copied: Copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(INTACT["shards"])
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folder))
    assert hub.locate("owner/name").folder == folder
    shard = folder / "model-00002-of-00003.safetensors"
    shard.unlink()
    shard.symlink_to(folder / "lost")
    monkeypatch.setattr(hub, "_ask_hub", lambda *_: "commit")
    assert not hub.locate("owner/name").local


def test_a_model_larger_than_the_memory_is_one_sentence(
    copied: Copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(lambda _: None)
    kind = configs.AutoModelForImageTextToText
    monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: torch.empty(10**15))
    assert "does not fit into memory" in refusal(folder)


def test_the_cause_of_a_refusal_is_kept(copied: Copied) -> None:
    broken, _ = UNREAD["template_syntax"]
    with pytest.raises(ValueError) as caught:
        load(str(copied(broken)), device="cpu", rehearse=True)
    assert type(caught.value.__cause__).__name__ == "TemplateSyntaxError"


def test_a_token_without_an_embedding_is_refused_when_it_is_written() -> None:
    model, tokenizer = build_llama(), make_tokenizer()
    tokenizer.add_tokens(["<more>"], special_tokens=True)
    loaded = LoadedModel(
        model, tokenizer, tokenizer, "m", torch.device("cpu"), torch.float32, "", False
    )
    loaded.prompt([{"role": "user", "content": "w40"}])
    with pytest.raises(ValueError, match=r"'<more>' as token 160 and the model has 160 tokens"):
        loaded.prompt([{"role": "user", "content": "w40 <more>"}])
