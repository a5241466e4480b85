"""What identifies weights, before anything is loaded.

Knows files and where the hub keeps models; must not know transformers or torch, so that a missing
model is reported within a second.
"""

from harness.errors import UserError
from harness.models.hub import locate


def identify(pretrained: str, revision: str | None = None) -> str:
    """The fingerprint of a checkpoint.

    Args:
        pretrained: a folder, a GGUF file, `package:<name>` of an installed package that holds one,
            or a hub id such as "Qwen/Qwen2.5-VL-7B-Instruct".
        revision: branch, tag or commit of a hub id.

    Returns:
        The commit of a hub id; sha256 of a GGUF file, or over the files of a folder that define
        the model, its processor and its chat template.

    Raises:
        UserError: there is no such folder or file, or neither hub nor local cache has the model.
    """
    try:
        source = locate(pretrained, revision)
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}, or choose model=tiny_vlm.") from error
    return source.fingerprint()
