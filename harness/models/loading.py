"""Loading any transformers image-text or text model from a folder or the hub.

Must not know eviction, tasks or scoring.
"""

from __future__ import annotations

from dataclasses import replace

from harness.models import rehearsal
from harness.models.checkpoint import open_checkpoint
from harness.models.devices import device_of, dtype_of
from harness.models.hub import locate
from harness.models.loaded import LoadedModel, Unloaded


def load(
    pretrained: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    rehearse: bool = False,
    chat_template: str | None = None,
) -> LoadedModel:
    """Load a folder or a hub id; weights come from safetensors only.

    device auto: cuda where there is one. dtype auto: bfloat16 on cuda, float32 elsewhere.
    rehearse: try a first prompt as well, so that what cannot be asked is refused here.
    chat_template: text of a template in the place of the model's own.
    ValueError, one sentence, for what does not exist, cannot be reached or is of another kind,
    and for weights that are not those that the config asks for.
    """
    target = device_of(device)
    number = dtype_of(dtype, target)
    source = locate(pretrained, revision)
    checkpoint = open_checkpoint(pretrained, source, trust_remote_code)
    if chat_template is not None:
        checkpoint.processor.chat_template = checkpoint.tokenizer.chat_template = chat_template
    loaded = LoadedModel(
        Unloaded(checkpoint.config, checkpoint.generation),
        checkpoint.processor,
        checkpoint.tokenizer,
        pretrained,
        target,
        number,
        source.fingerprint(),
        checkpoint.takes_images,
    )
    prompt = rehearsal.prompt(loaded) if rehearse else None
    checkpoint.check_names(number)
    loaded = replace(loaded, model=checkpoint.weights(number, target))
    if prompt is not None:
        rehearsal.forward(loaded, prompt)
    return loaded
