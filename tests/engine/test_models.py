"""Loading from folders, prompts from chat messages, and sentences where something is missing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import IMAGE, build_llama, build_llava, make_tokenizer
from transformers import AutoProcessor, LlavaProcessor
from transformers.models.clip import CLIPImageProcessorPil

import methods
from harness.engine import Branch, Engine, Generation
from harness.models import devices, hub
from harness.models.devices import use_threads
from harness.models.loading import load
from harness.models.prompts import modality

TEMPLATE = (
    "<s> {% for m in messages %}{{ m['role'] }} {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image> {% else %}{{ p['text'] | trim }} {% endif %}"
    "{% endfor %}</s> {% endfor %}{% if add_generation_prompt %}w60 w61 {% endif %}"
)
TEXT_TEMPLATE = (
    "<s> {% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}w60 w61 w62{% endif %}"
)


def messages(*images: Image.Image) -> list[dict]:
    content = [{"type": "image", "url": image} for image in images]
    question = {"type": "text", "text": "w40 w41 w42\n"}
    return [
        {"role": "system", "content": [{"type": "text", "text": "w1 w2"}]},
        {"role": "user", "content": [*content, question]},
    ]


def picture(seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 255, (40, 50, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    model = build_llava()
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    model.save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    build_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_an_image_model_loads_and_answers(llava_folder):
    loaded = load(str(llava_folder))
    assert loaded.takes_images
    wanted = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    assert loaded.dtype == loaded.model.dtype == wanted
    prompt = loaded.prompt(messages(picture()))
    branches = [Branch(), Branch(methods.build("restkv"), ratio=0.5)]
    full, cell = Engine(loaded).run(prompt, branches, Generation(2), ("A", "B"))
    assert full.image_tokens == 16
    assert cell.exposed_tokens > 0
    assert set(cell.letter_logits) == {"A", "B"}


def test_image_prompts_equal_those_of_the_processor_itself(llava_folder):
    loaded = load(str(llava_folder), device="cpu", dtype="float32")
    chat = messages(picture(1), picture(2))
    prompt = loaded.prompt(chat)
    wanted = AutoProcessor.from_pretrained(llava_folder).apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert set(prompt.inputs) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(prompt.inputs[name], value, rtol=0, atol=0)
    image = loaded.model.config.image_token_id
    ids = prompt.inputs["input_ids"][0]
    assert torch.equal(prompt.modality, (ids == image).long())
    assert int(prompt.modality.sum()) == 32
    assert prompt.suffix == 3  # </s> w60 w61
    assert prompt.context == int((ids == image).nonzero().max()) + 1


def test_a_marked_context_ends_later_than_the_image(llava_folder):
    loaded = load(str(llava_folder), device="cpu")
    chat = messages(picture())
    chat[1]["content"].insert(1, {"type": "text", "text": "w30 w31 w32 ", "context": True})
    prompt = loaded.prompt(chat)
    tokens = loaded.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0].tolist())
    assert tokens[prompt.context - 1] == "w32"
    assert tokens[prompt.context] == "w40"


def test_a_final_assistant_message_is_continued(llava_folder):
    loaded = load(str(llava_folder), device="cpu")
    answer = {"role": "assistant", "content": [{"type": "text", "text": "w50 w51"}]}
    prompt = loaded.prompt([*messages(picture()), answer])
    tokens = loaded.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0].tolist())
    assert tokens[-2:] == ["w50", "w51"]


def test_text_models_take_plain_text_or_their_template(llama_folder):
    loaded = load(str(llama_folder), device="cpu", dtype="float16")
    assert not loaded.takes_images
    assert loaded.model.dtype == torch.float16
    prompt = loaded.prompt([{"role": "user", "content": "w40 w41"}])
    tokens = loaded.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0].tolist())
    assert tokens == ["w40", "w41"]
    assert (prompt.suffix, prompt.context) == (0, None)
    loaded.tokenizer.chat_template = TEXT_TEMPLATE
    prompt = loaded.prompt(messages())
    tokens = loaded.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0].tolist())
    assert tokens[0] == "<s>"
    assert tokens[-4:] == ["</s>", "w60", "w61", "w62"]
    assert prompt.suffix == 4
    with pytest.raises(ValueError, match="takes no images"):
        loaded.prompt(messages(picture()))


def test_letters_stops_and_text(llama_folder):
    loaded = load(str(llama_folder), device="cpu")
    assert loaded.letter_ids("ABCD") == [4, 5, 6, 7]
    assert loaded.stop_ids == {2}
    assert loaded.decode([4, 2]) == "A"
    loaded.model.generation_config.eos_token_id = [2, 9]
    loaded.__dict__.pop("stop_ids")
    assert loaded.stop_ids == {2, 9}


def test_every_placeholder_of_a_config_counts_as_an_image():
    class Config:
        image_token_id = IMAGE
        video_token_id = IMAGE + 1
        image_token_index = None

    ids = torch.tensor([3, IMAGE, IMAGE + 1, IMAGE + 2])
    assert modality(Config(), ids).tolist() == [0, 1, 1, 0]


def test_the_fingerprint_follows_weights_and_config(llama_folder, tmp_path):
    first = load(str(llama_folder), device="cpu").fingerprint
    assert load(str(llama_folder), device="cpu").fingerprint == first
    for path in llama_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "README.md").write_text("words")
    assert load(str(tmp_path), device="cpu").fingerprint == first
    model = build_llama()
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu").fingerprint != first


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("./nowhere", "does not exist"),
        ("a/b/c", "does not exist"),
        ("bad name!", "neither a folder nor a hub id"),
        (".", "has no config.json"),
    ],
)
def test_names_of_nothing_are_refused(name, part):
    with pytest.raises(ValueError, match=part):
        load(name)


def test_an_incomplete_folder_is_refused_in_one_sentence(llama_folder, tmp_path):
    for path in llama_folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="neither an image-text nor a causal language model"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("problem", ["refused", "hangs"])
def test_an_unreachable_hub_is_reported_within_a_second(monkeypatch, tmp_path, problem):
    def ask(*_, **__):
        if problem == "refused":
            raise OSError("no route")
        time.sleep(5)

    monkeypatch.setattr(hub.HfApi, "model_info", ask)
    started = time.perf_counter()
    with pytest.raises(ValueError, match="hub cannot be reached"):
        load("nobody/nothing-of-this-name")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"device": "tpu9"}, "device='tpu9'"),
        ({"device": "meta"}, "device='meta'"),
        ({"device": "cuda:77"}, "device='cuda:77'"),
        ({"dtype": "int3"}, "dtype='int3'"),
    ],
)
def test_devices_and_dtypes_are_checked_before_loading(options, part):
    with pytest.raises(ValueError, match=part):
        load("./nowhere", **options)


OLD = "The NVIDIA driver on your system is too old (found version 12040). Please update it."
BAD = "Unexpected error from cudaGetDeviceCount(). Did you? Error 803: unsupported driver"


@pytest.mark.parametrize(
    ("said", "part"), [(OLD, r"too old \(found version 12040\)\);"), (BAD, r"\(Error 803: unsup")]
)
def test_a_gpu_that_torch_cannot_use_is_no_silent_cpu(monkeypatch, said, part):
    def fails():
        raise RuntimeError(said)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fails)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices.glob, "glob", lambda _: [])
    assert devices.device_of("auto").type == "cpu"
    monkeypatch.setattr(devices.glob, "glob", lambda _: ["/dev/nvidia0"])
    with pytest.raises(ValueError, match=part) as caught:
        devices.device_of("auto")
    assert str(caught.value).endswith("or give device=cpu.")
    assert devices.device_of("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.device_of("auto").type == "cpu"


@pytest.mark.parametrize(("wanted", "expected"), [("auto", 1), (2, 2)])
def test_threads_of_a_small_model(llama_folder, wanted, expected):
    loaded, before = load(str(llama_folder), device="cpu"), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        use_threads(loaded, wanted)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
