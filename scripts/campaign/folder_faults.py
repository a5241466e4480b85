"""The ways in which a folder with a model is faulty, or only written otherwise."""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.campaign import tensors
from scripts.campaign.tensors import Change

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3373192\n"
LAYER = "language_model.model.layers.3."


@dataclass(frozen=True)
class Folder:
    """A copy of a model with a change: `want` is refuse, right, either (refused or equal), or
    finite (refused, or rows that are not finite are failed and the others equal).
    """

    said: str
    change: Callable[[Path, random.Random], Path | None]
    want: str = "refuse"
    words: tuple[str, ...] = ()
    dtype: str = "float32"
    more: tuple[str, ...] = ()

    def make(self, source: Path, place: Path, rng: random.Random) -> Path:
        """Copy and change; returns what model.pretrained names."""
        folder = place / "copy"
        shutil.copytree(source, folder)
        return self.change(folder, rng) or folder


def _json(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Any], None]:
    def edit(folder: Path, rng: random.Random) -> None:
        path = folder / name
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed, indent=1))

    return edit


def _set(name: str, key: str, value: Any) -> Callable[[Path, Any], None]:
    """Set a value, `key` with dots for what lies inside; ... removes it."""

    def change(content: dict[str, Any]) -> None:
        *inner, last = key.split(".")
        node = content
        for part in inner:
            node = node[part]
        if value is ...:
            node.pop(last)
        else:
            node[last] = value

    return _json(name, change)


def _file(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Path, Any], None]:
    """Replace a file's content; None removes it."""

    def edit(folder: Path, rng: random.Random) -> None:
        path = folder / name
        content = change(path.read_bytes())
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return edit


def _weights(change: Change) -> Callable[[Path, random.Random], None]:
    return lambda folder, rng: tensors.rewrite(folder, change, rng)


def config(key: str, value: Any, want: str = "refuse", *words: str) -> Folder:
    """A value of config.json."""
    said = f"config {key} {'removed' if value is ... else f'= {value!r}'}"
    return Folder(said, _set("config.json", key, value), want, words)


def spoilt(name: str, want: str = "refuse", without: str = "refuse") -> tuple[Folder, ...]:
    """Each way in which a file can be no file of its kind."""
    ways: Mapping[str, Callable[[bytes], bytes | None]] = {
        "empty": lambda c: b"",
        "half": lambda c: c[: len(c) // 2],
        "an LFS pointer": lambda c: POINTER.encode(),
        "HTML": lambda c: b"<html>404 Not Found</html>",
        "a list": lambda c: b"[]",
        "null": lambda c: b"null",
        "bytes that are no text": lambda c: bytes(range(128, 256)),
    }
    made = [Folder(f"{name}: {how}", _file(name, way), want, (name,)) for how, way in ways.items()]
    return *made, Folder(f"{name}: missing", _file(name, lambda c: None), without)


def template(text: str, want: str = "refuse") -> Folder:
    """Another chat template."""
    said = f"template {text!r:.50}"
    return Folder(said, _file("chat_template.jinja", lambda c: text.encode()), want, ("template",))


def _template_inside(folder: Path, rng: random.Random) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    _set("tokenizer_config.json", "chat_template", text)(folder, rng)


def _moved(name: str) -> Callable[[Path, Any], Path]:
    return lambda folder, rng: folder.rename(folder.with_name(name))


def _linked(folder: Path, rng: random.Random) -> Path:
    """As the hub's cache does it: every file a link to a blob."""
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    link = folder.with_name("link")
    link.symlink_to(folder)
    return link


def _loop(folder: Path, rng: random.Random) -> None:
    path = folder / "model.safetensors"
    path.unlink()
    path.symlink_to(path)


def _more_files(folder: Path, rng: random.Random) -> None:
    (folder / "README.md").write_text("# x")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / "pytorch_model.bin").write_bytes(b"garbage")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    (folder / "training.json").unlink()


def _pickle_only(folder: Path, rng: random.Random) -> None:
    import torch

    torch.save(tensors.load(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _vocabulary(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, Any], None]:
    return _json("tokenizer.json", change)


def _beyond(content: dict[str, Any]) -> None:
    """The words of the questions get numbers that the embedding does not have."""
    vocabulary = content["model"]["vocab"]
    for word in ("the", "what", "is", "color", "A", "B"):
        if word in vocabulary:
            vocabulary[word] += 5000


def _no_image_token(content: dict[str, Any]) -> None:
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<image>"]
    content["model"]["vocab"].pop("<image>", None)


def _halved(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {k: v for k, v in vocabulary.items() if v < 40}


CONFIG = (
    *(config("text_config.num_hidden_layers", n) for n in (4, 5, 7, 8, 0, -1, 1.5, "6", None)),
    *(config("text_config.num_attention_heads", n) for n in (2, 8, 3, 0)),
    *(config("text_config.num_key_value_heads", n) for n in (1, 4, 3, 0)),
    *(config("text_config.hidden_size", n) for n in (64, 256, 0)),
    *(config("text_config.head_dim", n) for n in (16, 64, 0)),
    *(config("text_config.vocab_size", n) for n in (498, 500, 10, 0)),
    *(config("text_config.intermediate_size", n) for n in (383, 0)),
    config("text_config.attention_bias", True),
    config("text_config.mlp_bias", True),
    config("text_config.hidden_act", "nope", "refuse", "nope"),
    config("text_config.max_position_embeddings", 32, "refuse"),
    config("text_config.max_position_embeddings", 0, "refuse"),
    config("text_config.max_position_embeddings", "many", "refuse"),
    config("text_config.rope_parameters", {"rope_type": "nope"}, "refuse", "nope|rope"),
    config("text_config.rope_parameters", 3),
    config("text_config.rope_parameters.rope_theta", 0.0),
    config("text_config.rope_parameters.rope_theta", "x"),
    config("text_config.rms_norm_eps", "x"),
    config("text_config.model_type", "nope", "refuse", "nope"),
    config("text_config", ...),
    config("text_config", 3),
    config("text_config.use_cache", False, "right"),
    config("text_config.mine", 3, "right"),
    config("tie_word_embeddings", True, "either"),
    config("text_config.tie_word_embeddings", True, "either"),
    config("vision_config.num_hidden_layers", 2),
    config("vision_config.num_hidden_layers", 4),
    config("vision_config.hidden_size", 48),
    config("vision_config.patch_size", 8),
    config("vision_config.image_size", 64),
    config("vision_config", ...),
    config("vision_feature_layer", 99),
    config("vision_feature_layer", -2, "either"),
    config("vision_feature_select_strategy", "nope", "refuse", "nope|vision_feature"),
    config("vision_feature_select_strategy", "full"),
    config("image_token_index", 5, "either"),
    config("image_token_index", 99999),
    config("image_token_index", -1),
    config("image_seq_length", 63, "either"),
    config("model_type", "nope", "refuse", "nope"),
    config("model_type", "bert", "refuse", "bert"),
    config("model_type", "llama"),
    config("model_type", None),
    config("model_type", ...),
    config("architectures", ["BertModel"], "either"),
    config("architectures", None, "either"),
    config("dtype", "nope", "either"),
    config("dtype", "int8", "either"),
    config("quantization_config", {"quant_method": "nope"}),
    config("quantization_config", {"quant_method": "gptq", "bits": 4}),
    config("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    config("auto_map", {"AutoConfig": "mine.Config"}, "either"),
    config("projector_hidden_act", "nope", "refuse", "nope"),
)

PROCESSOR = (
    *(
        Folder(f"processor {key} = {value!r}", _set("processor_config.json", key, value), want)
        for key, value, want in (
            ("patch_size", 8, "refuse"), ("patch_size", 0, "refuse"), ("patch_size", None, "refuse"),
            ("num_additional_image_tokens", 0, "either"), ("image_token", "<nope>", "refuse"),
            ("processor_class", "Nope", "either"), ("processor_class", "CLIPProcessor", "either"),
            ("image_processor.image_processor_type", "Nope", "refuse"),
            ("image_processor.size", {"height": 0, "width": 0}, "refuse"),
            ("image_processor.size", {"height": 64, "width": 64}, "refuse"),
            ("image_processor.size", 3, "refuse"),
            ("image_processor.image_mean", [0.5, 0.5], "refuse"),
            ("image_processor.image_mean", None, "refuse"),
            ("image_processor.image_std", [0, 0, 0], "finite"),
            ("image_processor.image_std", [float("nan")] * 3, "finite"),
            ("image_processor.rescale_factor", "x", "refuse"),
            ("image_processor.rescale_factor", 1e39, "finite"),
            ("image_processor.resample", 99, "refuse"),
            ("image_processor.mine", 1, "right"),
            ("vision_feature_select_strategy", "full", "either"),
        )
    ),
)  # fmt: skip

TOKENIZER = (
    Folder("tokenizer: ids beyond the embedding", _vocabulary(_beyond)),
    Folder("tokenizer: no image token", _vocabulary(_no_image_token)),
    Folder("tokenizer: most words gone", _vocabulary(_halved), "either"),
    Folder("tokenizer: no model", _vocabulary(lambda c: c.pop("model"))),
    Folder("tokenizer: another kind", _vocabulary(lambda c: c["model"].update(type="Nope"))),
    *(
        Folder(f"tokenizer_config {key} = {value!r}", _set("tokenizer_config.json", key, value), want)
        for key, value, want in (
            ("tokenizer_class", "NopeTokenizer", "either"), ("bos_token", None, "either"),
            ("bos_token", 3, "either"), ("image_token", "<nope>", "either"),
            ("model_max_length", 10, "either"), ("model_max_length", "x", "either"),
            ("padding_side", "nope", "either"), ("eos_token", "<nope>", "either"),
            ("add_bos_token", True, "either"), ("processor_class", "Nope", "either"),
        )
    ),
)  # fmt: skip

TEMPLATES = (
    template(""),
    template("   \n"),
    template("{% for m in messages %}"),
    template("{{ messages | nope }}"),
    template("{{ nope.nope }}"),
    template("{{ raise_exception('no system role') }}"),
    template("{{ 1 / 0 }}"),
    template("{% for i in range(10**9) %}x{% endfor %}"),
    template("{{ messages[7].content }}"),
    template("USER: hello ASSISTANT:"),
    template(
        "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    ),
    template("{{ bos_token }}<image>\nASSISTANT:"),
    template("{{ bos_token }}<image><image>{{ messages[0]['content'][1]['text'] }}ASSISTANT:"),
    template("{{ ''.__class__.__mro__ }}"),
    template("{% include 'x' %}"),
    template("\ud83d".encode("utf-8", "surrogatepass").decode("utf-8", "replace") + "{{ x"),
    Folder("template: missing", _file("chat_template.jinja", lambda c: None), "either"),
    Folder("template: in tokenizer_config", _template_inside, "right"),
    Folder(
        "template: with a comment", _file("chat_template.jinja", lambda c: b"{# x #}" + c), "right"
    ),
)

PLACES = (
    Folder("the intact folder", lambda f, r: None, "right"),
    Folder("intact in float16", lambda f, r: None, "right", dtype="float16"),
    Folder("intact in bfloat16", lambda f, r: None, "right", dtype="bfloat16"),
    Folder("a name with blanks and accents", _moved("my mödel 中"), "right"),
    Folder("a name with dots", _moved("model.v1.5"), "right"),
    Folder("links as in the hub's cache", _linked, "right"),
    Folder("other files beside it", _more_files, "right"),
    Folder("weights that link to themselves", _loop, words=("model.safetensors",)),
    Folder("pickled weights only", _pickle_only, words=("safetensors",)),
    Folder(
        "generation_config: sampling", _set("generation_config.json", "do_sample", True), "right"
    ),
    Folder(
        "generation_config: odd eos",
        _set("generation_config.json", "eos_token_id", 99999),
        "either",
    ),
    Folder(
        "generation_config: text for eos",
        _set("generation_config.json", "eos_token_id", "x"),
        "either",
    ),
)

CASES: tuple[Folder, ...] = (
    *(
        Folder(s, _weights(c), want, words, dtype, more)
        for s, c, want, words, dtype, more in tensors.CASES
    ),
    *(Folder(s, c, want, words) for s, c, want, words in tensors.FILES),
    *CONFIG,
    *spoilt("config.json"),
    *PROCESSOR,
    *spoilt("processor_config.json", "either", "either"),
    *TOKENIZER,
    *spoilt("tokenizer.json"),
    *spoilt("tokenizer_config.json", "either", "either"),
    *spoilt("generation_config.json", "either", "right"),
    *TEMPLATES,
    *PLACES,
)
