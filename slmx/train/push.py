"""A trained model onto the Hugging Face Hub, when somebody asks for it."""

from __future__ import annotations

from pathlib import Path

from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, Notice, nobody
from slmx.train.folder import RUN_FILE

# What a run leaves beside its model: checkpoints, trackers' files, and records with paths and texts of this machine.
# The card of a run that is pushed names folders without their paths.
STAYS_HERE = ["checkpoints/*", "logs/*", RUN_FILE, "leaks.json", ".*"]


def check_push(name: str) -> None:
    """Could a model be pushed under this id? Asked before training; nothing is sent.

    Raises:
        UsageError: no id of the Hub, the Hub is switched off, or no token is set.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name!r} is no id of the Hub: {error}", hint="--push-to-hub NAME/MODEL") from None
    if constants.HF_HUB_OFFLINE:
        raise UsageError("--push-to-hub: HF_HUB_OFFLINE keeps the Hub out.", hint="Unset it, or leave the option out.")
    if not get_token():
        raise UsageError("--push-to-hub needs a token of the Hub.", hint="Put HF_TOKEN into .env or the environment.")


def push(folder: Path, name: str, listen: Listener = nobody) -> None:
    """Send the model of a run's folder to the Hub; the repository is made at need.

    Raises:
        SlmxError: it could not be sent; the folder is as it was.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from slmx.models.quiet import no_bars

    try:
        with no_bars():
            api = HfApi()
            api.create_repo(name, exist_ok=True)
            done = api.upload_folder(
                repo_id=name, folder_path=folder, ignore_patterns=STAYS_HERE, commit_message="Trained with slmx"
            )
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SlmxError(
            f"{name} was not pushed: {said}.", hint=f"The model is whole in {folder}; later: hf upload {name} {folder}"
        ) from error
    listen(Notice(f"Pushed to {done.repo_url if hasattr(done, 'repo_url') else name}."))
