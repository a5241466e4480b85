"""Model folders with one fault each: what was done to a copy of an intact one, and what is said."""

from __future__ import annotations

import json

import torch
from folder_faults import (
    CONFIG,
    LAYER,
    LFS,
    OUR_CODE,
    PROCESSOR,
    WEIGHTS,
    Fault,
    gone,
    half_a_vocabulary,
    looped,
    remote,
    renamed,
    replaced_folder,
    settings,
    shard,
    sharded,
    shards,
    tensors,
    text_config,
    truncated,
    without,
    written,
    zeroed,
)
from safetensors.torch import load_file

# name -> (fault, a part of the sentence)
UNREAD: dict[str, tuple[Fault, str]] = {
    "no_weights": (gone(WEIGHTS), "has no weights"),
    "truncated": (truncated, "damaged or cut short"),
    "truncated_header": (lambda f: truncated(f, 0.0005), "damaged or cut short"),
    "empty_weights": (written(WEIGHTS, b""), "it is empty"),
    "lfs_weights": (written(WEIGHTS, LFS), "git lfs pull"),
    "zero_weights": (written(WEIGHTS, bytes(100_000)), "begins with zeros"),
    "text_weights": (written(WEIGHTS, "<html>404 not found</html>"), "damaged or cut short"),
    "weights_are_a_folder": (replaced_folder, "Is a directory"),
    "weights_link_to_themselves": (looped(WEIGHTS), "symbolic links"),
    "longer": (lambda f: (f / WEIGHTS).open("ab").write(b"tail"), "damaged or cut short"),
    "pickle": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "only safetensors"),
    "gguf": (lambda f: (f / WEIGHTS).rename(f / "model.Q4.gguf"), r"\.gguf. in its place"),
    "other_name": (lambda f: (f / WEIGHTS).rename(f / "a.safetensors"), "a.safetensors and no"),
    "shard_lost": (shards(lambda f, _: (f / shard(2)).unlink()), shard(2)),
    "index_names_nothing_there": (
        shards(lambda _, index: index.update({LAYER + "x": "model-9.safetensors"})),
        "model-9.safetensors",
    ),
    "index_names_too_much": (
        shards(lambda _, index: index.update(mine=shard(1))),
        r"names tensors that its files do not hold \(mine\)",
    ),
    "index_empty": (shards(lambda _, index: index.clear()), "names no weight files"),
    "index_outside": (
        shards(lambda _, index: index.update({"x": "../../etc/passwd"})),
        "names no weight files",
    ),
    "index_numbers": (shards(lambda _, index: index.update({"x": 3})), "names no weight files"),
    "shard_truncated": (
        shards(lambda f, _: (f / shard(1)).write_bytes((f / shard(1)).read_bytes()[:9000])),
        shard(1),
    ),
    "shard_lfs": (shards(lambda f, _: (f / shard(3)).write_text(LFS)), "git lfs pull"),
    "shard_twice": (
        shards(lambda f, _: (f / shard(3)).write_bytes((f / shard(1)).read_bytes())),
        "as well",
    ),
    "adapter": (written("adapter_config.json", '{"peft_type": "LORA"}'), "holds an adapter"),
    "int8": (
        tensors(lambda h: h.update({k: v.to(torch.int8) for k, v in h.items() if v.dim() == 2})),
        "quantised weights",
    ),
    "float8": (
        tensors(
            lambda h: h.update({k: v.to(torch.float8_e4m3fn) for k, v in h.items() if v.dim() == 2})
        ),
        "quantised weights",
    ),
    "no_config": (gone(CONFIG), "no config.json"),
    "tokenizer_of_half_the_words": (settings("tokenizer.json", half_a_vocabulary), "250 tokens"),
    "tokenizer_of_no_model": (settings("tokenizer.json", lambda t: t.pop("model")), "tokenizer"),
    "tokenizer_without_bos": (written("tokenizer_config.json", "{}"), "writes bos_token"),
    "processor_of_nothing": (written(PROCESSOR, "{}"), "image processor"),
    "processor_unknown": (
        settings(PROCESSOR, lambda c: c["image_processor"].update(image_processor_type="No")),
        "image processor",
    ),
    "processor_size": (
        settings(PROCESSOR, lambda c: c["image_processor"].update(image_mean="x")),
        "mean must have 3 elements|invalid data type 'str'",
    ),
    "layers_without_end": (text_config(num_hidden_layers=10**9), "1,000,000,000"),
    "no_text_config": (settings(CONFIG, lambda c: c.pop("text_config")), "vocab_size=32,000"),
    "no_tokenizer": (gone("tokenizer.json"), "tokenizer"),
    "no_tokenizer_at_all": (gone("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    "no_processor": (gone("processor_config.json"), "processor"),
    "config_of_nothing": (written(CONFIG, "{}"), "model_type"),
    "config_unknown_type": (
        settings(CONFIG, lambda c: c.update(model_type="nobody")),
        "model type `nobody`",
    ),
    "config_of_a_classifier": (settings(CONFIG, lambda c: c.update(model_type="clip")), "neither"),
    "config_type_is_a_number": (settings(CONFIG, lambda c: c.update(model_type=5)), "config.json"),
    "config_layers_in_words": (text_config(num_hidden_layers="six"), "num_hidden_layers"),
    "config_text_is_a_list": (settings(CONFIG, lambda c: c.update(text_config=[1])), "config.json"),
    "config_odd_dtype": (settings(CONFIG, lambda c: c.update(dtype="float99")), "float99"),
    "config_layers_of_nothing": (text_config(num_hidden_layers=None), r"got null"),
    "config_dtype": (settings(CONFIG, lambda c: c.update(dtype="nope")), "torch has no 'nope'"),
    "config_rope_is_a_number": (text_config(rope_parameters=3), "rope_parameters' with value 3"),
    "config_heads": (text_config(num_attention_heads=3), r"config\.json: The hidden size \(128\)"),
    "config_kv_heads": (text_config(num_key_value_heads=3), "num_key_value_heads=3"),
    "config_no_kv_heads": (text_config(num_key_value_heads=0), "num_key_value_heads=0"),
    "config_small_vocabulary": (text_config(vocab_size=300), "vocab_size=300"),
    "config_image_token_outside": (
        settings(CONFIG, lambda c: c.update(image_token_index=70_000)),
        "image token",
    ),
    "config_weights_elsewhere": (
        settings(CONFIG, lambda c: c.update(transformers_weights="other.safetensors")),
        "other.safetensors",
    ),
    "quantised_gptq": (
        settings(
            CONFIG, lambda c: c.update(quantization_config={"quant_method": "gptq", "bits": 4})
        ),
        "quantization_config",
    ),
    "quantised_bitsandbytes": (
        settings(
            CONFIG,
            lambda c: c.update(
                quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
            ),
        ),
        "quantization_config",
    ),
    "quantised_unknown": (
        settings(CONFIG, lambda c: c.update(quantization_config={"quant_method": "nobody"})),
        "quantization_config",
    ),
    "quantised_without_method": (
        settings(CONFIG, lambda c: c.update(quantization_config={"bits": 4})),
        "quantization_config",
    ),
    "quantised_in_words": (
        settings(CONFIG, lambda c: c.update(quantization_config="4 bits")),
        "config.json",
    ),
    "template_syntax": (written("chat_template.jinja", "{% for m in %}"), "chat template"),
    "template_raises": (
        written("chat_template.jinja", "{{ raise_exception('no such role') }}"),
        "no such role",
    ),
    "template_undefined": (written("chat_template.jinja", "{{ a.b.c }}"), "chat template"),
    "template_drops_text": (
        written("chat_template.jinja", "<image> Q: {% if add_generation_prompt %}A:{% endif %}"),
        "leaves out what the user says",
    ),
    "template_drops_image": (
        written("chat_template.jinja", "{{ messages[0].content[1].text }}"),
        "number of images",
    ),
    "template_not_text": (written("chat_template.jinja", b"\xff\xfe\x00 {{"), "is not text"),
    "ends_nowhere": (
        lambda folder: [
            fault(folder)
            for fault in (
                settings("generation_config.json", lambda c: c.pop("eos_token_id")),
                settings("tokenizer_config.json", lambda c: c.pop("eos_token", None)),
                text_config(eos_token_id=None),
            )
        ],
        "eos_token",
    ),
    "ends_at_a_word": (
        settings("generation_config.json", lambda c: c.update(eos_token_id=[3, 40])),
        "ends an answer at the word",
    ),
    "ends_outside": (
        lambda folder: [
            fault(folder)
            for fault in (
                settings("generation_config.json", lambda c: c.update(eos_token_id=["end", 9999])),
                settings("tokenizer_config.json", lambda c: c.pop("eos_token", None)),
                text_config(eos_token_id=None),
            )
        ],
        "eos_token",
    ),
    "remote_without_leave": (remote(OUR_CODE.format(config="", model="")), "trust_remote_code"),
    **{
        f"{how}_{file}": (written(file, content), f"{file}.*{part}")
        for file in (
            CONFIG,
            "tokenizer.json",
            "tokenizer_config.json",
            "processor_config.json",
            "generation_config.json",
            "chat_template.jinja",
        )
        for how, content, part in (
            ("empty", b"", "it is empty"),
            ("lfs", LFS, "git lfs pull"),
            ("zeros", bytes(300), "it is empty"),
            *([] if file.endswith("jinja") else [("broken", '{"a": ', "is not JSON")]),
            *([] if file.endswith("jinja") else [("list", "[1, 2]", "no JSON object")]),
        )
    },
}
# Found by the names and shapes in the headers.
NAMES: dict[str, tuple[Fault, str]] = {
    "one_bias": (without("multi_modal_projector.linear_1.bias"), "1 tensor is missing"),
    "one_projection": (without("layers.3.self_attn.v_proj"), r"1 tensor is missing.*v_proj"),
    "one_layer": (without("language_model.model.layers.3."), r"9 tensors are missing.*and 6 more"),
    "no_head": (without("lm_head"), r"missing.*lm_head.weight"),
    "no_embeddings": (without("embed_tokens"), r"missing.*embed_tokens"),
    "no_norm": (without("language_model.model.norm"), "1 tensor is missing"),
    "no_vision": (without("vision"), "missing.*vision"),
    "no_projector": (without("multi_modal_projector"), "missing.*projector"),
    "no_tensor": (tensors(dict.clear), "are 0 tensors"),
    "renamed": (tensors(renamed), r"missing.*left over"),
    "one_renamed": (
        tensors(lambda h: h.update({"lm_heed.weight": h.pop("lm_head.weight")})),
        r"missing \(lm_head.weight\).*left over \(lm_heed.weight\)",
    ),
    "one_more": (
        tensors(lambda h: h.update({LAYER + "extra.bias": torch.ones(3)})),
        "1 tensor is left over",
    ),
    "layers_4": (text_config(num_hidden_layers=4), "left over.*layers"),
    "layers_0": (text_config(num_hidden_layers=0), "left over.*layers"),
    "layers_8": (text_config(num_hidden_layers=8), "missing.*layers"),
    "vision_layers_2": (
        settings(CONFIG, lambda c: c["vision_config"].update(num_hidden_layers=2)),
        "left over",
    ),
    "biases_wanted": (text_config(attention_bias=True), "missing.*bias"),
    "head_dim": (text_config(head_dim=16), "of another shape"),
    "kv_heads_1": (text_config(num_key_value_heads=1), r"of another shape.*k_proj"),
    "hidden_size": (text_config(hidden_size=64), "of another shape"),
    "config_base_in_words": (
        text_config(rope_parameters={"rope_type": "default", "rope_theta": "x"}),
        r"a value is of the wrong kind \('str' and 'Tensor'\)",
    ),
    "more_rows_than_weights": (text_config(vocab_size=512), "of another shape"),
    "wrong_shape": (
        tensors(lambda h: h.update({"lm_head.weight": h["lm_head.weight"][:-1]})),
        r"1 tensor is of another shape \(lm_head.weight \[498, 128\] in the file and \[499, 128\]",
    ),
    "transposed": (
        tensors(lambda h: h.update({k: v.T for k, v in h.items() if "k_proj.weight" in k})),
        "of another shape",
    ),
    "shard_copied": (
        shards(
            lambda f, index: [
                (f / shard(2)).unlink(),
                [index.pop(k) for k, v in list(index.items()) if v == shard(2)],
            ]
        ),
        "missing",
    ),
    "other_architecture": (
        settings(CONFIG, lambda c: c["text_config"].update(model_type="qwen2")),
        "missing.*bias",
    ),
}
# Found when the weights are there.
READ: dict[str, tuple[Fault, str]] = {
    "all_zero": (zeroed, "ends in nothing but zeros"),
    "rest_zero": (lambda f: zeroed(f, 0.9), "ends in nothing but zeros"),
    "other_image_token": (
        settings(CONFIG, lambda c: c.update(image_token_index=5)),
        "image tokens do not match",
    ),
    "other_patches": (settings(PROCESSOR, lambda c: c.update(patch_size=8)), "do not match"),
    "other_feature_layer": (
        settings(CONFIG, lambda c: c.update(vision_feature_layer=-9)),
        "cannot read a first prompt: ",
    ),
}
# What may differ without a change of any answer.
INTACT: dict[str, Fault] = {
    "shards": sharded,
    "index_of_one_file": lambda folder: (folder / f"{WEIGHTS}.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS)})
    ),
    "float32_on_disk": tensors(lambda h: h.update({k: v.float() for k, v in h.items()})),
    "float64_on_disk": tensors(lambda h: h.update({k: v.double() for k, v in h.items()})),
    "todays_names": tensors(
        lambda h: [
            h.update({"model." + k.replace("language_model.model.", "language_model."): h.pop(k)})
            for k in list(h)
            if not k.startswith("lm_head")
        ]
    ),
    "old_tables": tensors(
        lambda h: h.update(
            {
                LAYER + "self_attn.rotary_emb.inv_freq": torch.ones(16),
                "vision_tower.embeddings.position_ids": torch.arange(65)[None],
            }
        )
    ),
    "tied_in_words_only": text_config(tie_word_embeddings=True),
    "dtype_of_no_meaning": text_config(dtype="int3"),
    "other_files": lambda folder: [
        (folder / "README.md").write_text("words"),
        (folder / "trainer_state.json").write_text("not json"),
        (folder / "optimizer.pt").write_bytes(b"x"),
        (folder / "training_args.bin").write_bytes(b"x"),
        (folder / "checkpoint-10").mkdir(),
    ],
    "no_generation_config": gone("generation_config.json"),
}
