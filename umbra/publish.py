"""Sending a folder to the Hugging Face hub, with one line for all that can go wrong there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from umbra.errors import UserError, of_the_hub

MESSAGE = "Push model using huggingface_hub."
TOKEN = "set HF_TOKEN to a token with write access, or run `hf auth login`"


def create(repo_id: str, private: bool | None, token: str | None) -> str:
    """Makes the model repository `repo_id` unless it exists; returns its full id, `owner/name`.

    `private`: None means private, since weights can carry traces of the ECGs they were trained on. Raises `UserError`
    if there is no token, or if the hub refuses or is not reached.
    """
    api = _api(repo_id, token)
    with _one_line(repo_id):
        made = api.create_repo(repo_id, private=private is not False, exist_ok=True)
        return str(made.repo_id)


def upload(folder: str | Path, repo_id: str, token: str | None, **options: Any) -> str:
    """Sends the files of `folder` in one commit and returns its URL; `options`: of `HfApi.upload_folder`.

    Raises `UserError` as `create` does.
    """
    api = _api(repo_id, token)
    with _one_line(repo_id):
        return str(api.upload_folder(repo_id=repo_id, repo_type="model", folder_path=str(folder), **options))


def check(repo_id: str, token: str | None = None) -> None:
    """Raises `UserError` for what can be known before anything is sent: an impossible id, no package, no token."""
    _api(repo_id, token)


def _api(repo_id: str, token: str | None) -> Any:
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError as error:
        raise UserError(f"{repo_id}: the hub needs a package: pip install 'umbra[hub]'") from error
    try:
        validate_repo_id(repo_id if isinstance(repo_id, str) else "")
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name at the hub; it has the form owner/name") from error
    if not (token or get_token()):
        raise UserError(f"{repo_id}: sending to the hub needs a token: {TOKEN}")
    return HfApi(token=token, library_name="umbra")


@contextlib.contextmanager
def _one_line(repo_id: str) -> Iterator[None]:
    """Turns whatever the hub's client raises into one line."""
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = of_the_hub(error)
        if status in (401, 403):
            raise UserError(f"{repo_id}: the hub does not let this token write there: {TOKEN} ({reason})") from error
        said = "the hub refused" if status else "the hub was not reached"
        raise UserError(f"{repo_id}: {said}: {reason}") from error
