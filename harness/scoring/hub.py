"""Says at once, in one sentence, when a data set on the hub cannot be had.

Knows the hub client only; must not load any data.
"""

from harness.errors import UserError

SECONDS = 5.0


def require_dataset(task: str, repository: str) -> None:
    """Check that a hub data set is reachable or was downloaded before.

    Raises:
        UserError: neither holds.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(repository, "README.md", repo_type="dataset", etag_timeout=SECONDS)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"task={task} needs the data set {repository} from the Hugging Face hub, which cannot "
            f"be had ({type(error).__name__}): connect, log in if it is private, or choose "
            "task=mmbench_mini, which needs no network."
        ) from error
