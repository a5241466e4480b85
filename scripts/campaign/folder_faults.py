"""The cases of model folders: what is changed in which file, and what must come of it."""

from scripts.campaign import tensor_faults, weight_files
from scripts.campaign.folder_changes import (
    Folder,
    beyond,
    config,
    halved,
    linked,
    looped,
    more_files,
    moved,
    no_image_token,
    pickle_only,
    replaced,
    set_value,
    spoilt,
    template,
    template_inside,
    vocabulary,
    weights,
)

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
    config("vision_feature_layer", -2, "other"),
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
        Folder(f"processor {key} = {value!r}", set_value("processor_config.json", key, value), want)
        for key, value, want in (
            ("patch_size", 8, "refuse"), ("patch_size", 0, "refuse"),
            ("patch_size", None, "refuse"),
            ("num_additional_image_tokens", 0, "either"), ("image_token", "<nope>", "either"),
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
    Folder("tokenizer: ids beyond the embedding", vocabulary(beyond)),
    Folder("tokenizer: no image token", vocabulary(no_image_token)),
    Folder("tokenizer: most words gone", vocabulary(halved), "either"),
    Folder("tokenizer: no model", vocabulary(lambda c: c.pop("model"))),
    Folder("tokenizer: another kind", vocabulary(lambda c: c["model"].update(type="Nope"))),
    *(
        Folder(f"tokenizer_config {key} = {value!r}",
               set_value("tokenizer_config.json", key, value), want)
        for key, value, want in (
            ("tokenizer_class", "NopeTokenizer", "either"), ("bos_token", None, "other"),
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
    Folder("template: missing", replaced("chat_template.jinja", lambda c: None), "either"),
    Folder("template: in tokenizer_config", template_inside, "either"),
    Folder(
        "template: with a comment",
        replaced("chat_template.jinja", lambda c: b"{# x #}" + c),
        "right",
    ),
)

PLACES = (
    Folder("the intact folder", lambda f, r: None, "right"),
    Folder("intact in float16", lambda f, r: None, "right", dtype="float16"),
    Folder("intact in bfloat16", lambda f, r: None, "right", dtype="bfloat16"),
    Folder("a name with blanks and accents", moved("my mödel 中"), "right"),
    Folder("a name with dots", moved("model.v1.5"), "right"),
    Folder("links as in the hub's cache", linked, "right"),
    Folder("other files beside it", more_files, "right"),
    Folder("weights that link to themselves", looped, words=("model.safetensors",)),
    Folder("pickled weights only", pickle_only, words=("safetensors",)),
    Folder(
        "generation_config: sampling",
        set_value("generation_config.json", "do_sample", True),
        "right",
    ),
    Folder(
        "generation_config: odd eos",
        set_value("generation_config.json", "eos_token_id", 99999),
        "either",
    ),
    Folder(
        "generation_config: text for eos",
        set_value("generation_config.json", "eos_token_id", "x"),
        "either",
    ),
)

CASES: tuple[Folder, ...] = (
    *(
        Folder(said, weights(change), want, words, dtype)
        for said, change, want, words, dtype in tensor_faults.FAULTS
    ),
    *(Folder(*fault) for fault in weight_files.FILES),
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
