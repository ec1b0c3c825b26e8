"""The hub's three methods of an encoder, with the arguments of `huggingface_hub.PyTorchModelHubMixin`."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import nn

from umbra.card import CARD, model_card
from umbra.directory import (
    CONFIG,
    FIX,
    GOLDEN,
    WEIGHTS,
    encoder_directory,
    mismatch,
    read_config,
    read_weights,
    save_weights,
)
from umbra.encoders.config import EncoderConfig
from umbra.encoders.registry import build_encoder
from umbra.errors import UserError
from umbra.files import make_folder, write_text
from umbra.golden import make
from umbra.publish import MESSAGE, create, upload

if TYPE_CHECKING:
    from umbra.encoders.encoder import Encoder


class Pretrained(nn.Module):
    """An encoder's way to and from its directory and the hub.

    `huggingface_hub` is loaded only where a hub id is used. Weights are safetensors and are loaded strictly.
    """

    config: EncoderConfig

    @classmethod
    def of(cls, config: EncoderConfig) -> Self:
        """The encoder of `config` with random weights, in eval mode. Raises `UserError` if it cannot be built."""
        name, args = config.architecture["name"], config.architecture["args"]
        try:
            backbone = build_encoder(name, len(config.leads), config.samples, dict(args))
        except (KeyError, TypeError) as error:
            raise UserError(f"the architecture {config.architecture} cannot be built: {error}") from error
        if config.dim not in (0, backbone.dim):
            raise UserError(f"the encoder's {CONFIG} says dim {config.dim}, its architecture has {backbone.dim}: {FIX}")
        return cls(backbone, config).eval()

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The encoder of a local directory. Raises `UserError` for files that are missing, damaged or inconsistent."""
        encoder = cls.of(read_config(directory))
        weights = read_weights(directory / WEIGHTS, FIX)
        if problem := mismatch(encoder.state_dict(), weights):
            raise UserError(f"{directory / WEIGHTS} does not match the {CONFIG} next to it: {problem}")
        encoder.load_state_dict(weights)
        return encoder

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str | torch.device = "cpu",
        strict: bool = True,
    ) -> Self:
        """`umbra.load_encoder` with the hub's options: the encoder of a directory or hub id, in eval mode.

        `force_download`, `token` (False: none is sent), `cache_dir`, `local_files_only`, `revision`: of
        `huggingface_hub.snapshot_download`.
        Raises `UserError` as `load_encoder` does, and for `strict=False`.
        """
        if not strict:
            raise UserError("strict=False: an encoder is loaded with all of its weights or not at all; leave it out")
        place = usable(map_location, "map_location")
        download = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        directory = encoder_directory(
            pretrained_model_name_or_path,
            "pretrained_model_name_or_path",
            **{k: v for k, v in download.items() if v not in (None, "")},
        )
        return cls.read(directory).to(place)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Writes an encoder directory, which `load_encoder` reads: weights, golden features, config, and a card unless
        one is there.

        `config` can only be the encoder's own; `model_card_kwargs`: arguments of `umbra.card.model_card`. With
        `push_to_hub` it is then sent to `repo_id` (None: the directory's name) and the commit's URL is returned. Raises
        `UserError` for another `config`, weights that are not finite, and a folder that cannot be written.
        """
        card = self._card(config, model_card_kwargs)
        folder = make_folder(save_directory, "save_directory")
        (folder / CONFIG).unlink(missing_ok=True)
        save_weights(folder / WEIGHTS, self.state_dict())
        plain = copy.deepcopy(self).float().cpu().eval()
        save_weights(folder / GOLDEN, make(cast("Encoder", plain)))
        if not (folder / CARD).exists():
            write_text(folder / CARD, card)
        write_text(folder / CONFIG, self.config.to_json())
        if not push_to_hub:
            return None
        name = repo_id or folder.resolve().name
        return self.push_to_hub(name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        config: Any = None,
        commit_message: str = MESSAGE,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        allow_patterns: list[str] | str | None = None,
        ignore_patterns: list[str] | str | None = None,
        delete_patterns: list[str] | str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Sends the encoder directory to the hub in one commit; returns its URL.

        A new repository is private unless `private=False`; one that exists stays as it is. `token`: None for that of
        HF_TOKEN or of `hf auth login`. Raises `UserError` without a token, and if the hub refuses or is not reached.
        """
        self._card(config, model_card_kwargs)  # before a repository is made
        name = create(repo_id, private, token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, model_card_kwargs={"repo": name} | (model_card_kwargs or {}))
            return upload(
                folder,
                name,
                token,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                allow_patterns=allow_patterns,
                ignore_patterns=ignore_patterns,
                delete_patterns=delete_patterns,
            )

    def _card(self, config: Any, card: dict[str, Any] | None) -> str:
        """The model card. Raises `UserError` for a config that is not the encoder's own and weights that none loads."""
        if config is not None and config not in (self.config, dataclasses.asdict(self.config)):
            raise UserError("config describes the weights and cannot be set: leave it out")
        if wrong := [name for name, tensor in self.state_dict().items() if not tensor.isfinite().all()]:
            raise UserError(
                f"the encoder cannot be saved: '{wrong[0]}' has values that are not finite (training failed?)"
            )
        return model_card(self.config, **(card or {}))


def usable(device: str | torch.device, argument: str = "device") -> torch.device:
    """The device of that name. Raises `UserError`, which names the `argument`, if it cannot be used."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{argument}={device!r} cannot be used here: give 'cpu', 'cuda' or 'cuda:0' ({reason})"
        ) from error
    return place
