"""`umbra.EncoderTransformer`: an encoder as a step of a scikit-learn pipeline."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from umbra.encoders.encoder import Encoder
from umbra.encoders.pretrained import usable
from umbra.errors import UserError
from umbra.hub import load_encoder


class EncoderTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """ECGs -> features [n, encoder.config.dim], float32, by `Encoder.embed`. Nothing is trained.

    X is [n, leads, samples], or [n, leads * samples], lead after lead. `encoder`: a directory, a hub id, or an
    `umbra.Encoder`; `rate` in Hz, `leads` (names in any case) and `units` are those of X (None: those of the encoder,
    in mV; the rate can only be left out for ECGs of the encoder's length); `batch`: windows per forward pass; `device`:
    where it runs. Fitted, it holds the encoder as `encoder_`, so that a pickle of it needs no directory.

    Raises `UserError`, a `ValueError`, if the encoder cannot be loaded or X cannot be ECGs of these leads.
    """

    def __init__(
        self,
        encoder: str | Path | Encoder = "",
        *,
        rate: float | None = None,
        leads: Sequence[str] | None = None,
        units: str | float | None = None,
        batch: int = 64,
        device: str = "cpu",
    ) -> None:
        self.encoder = encoder
        self.rate = rate
        self.leads = leads
        self.units = units
        self.batch = batch
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Loads the encoder (an `Encoder` is copied), learns the size of the ECGs and tries the first."""
        encoder = self.encoder
        if encoder == "" or not isinstance(encoder, str | Path | Encoder):
            raise UserError(f"encoder={encoder!r}: give an encoder directory, a hub id or an umbra.Encoder")
        if isinstance(encoder, Encoder):
            loaded = copy.deepcopy(encoder).to(usable(self.device))
        else:
            loaded = load_encoder(encoder, self.device)
        x = self._checked(X, loaded, reset=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `transform` says it
            self._features(loaded, x[:1])
        self.encoder_ = loaded
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features [n, dim] of ECGs of the size seen by `fit`."""
        check_is_fitted(self)
        return self._features(self.encoder_, self._checked(X, self.encoder_, reset=False))

    def _features(self, encoder: Encoder, x: NDArray[Any]) -> NDArray[np.float32]:
        about, rate = encoder.config, self.rate
        if rate is None and x.shape[2] != about.samples:
            raise UserError(
                f"rate is not set: the ECGs have {x.shape[2]} samples, the encoder takes {about.samples} at "
                f"{about.rate:g} Hz; give rate=..., the sampling rate of X in Hz"
            )
        features: NDArray[np.float32] = encoder.embed(
            x, rate=about.rate if rate is None else rate, leads=self.leads, units=self.units, batch=self.batch
        )
        return features

    def _checked(self, X: Any, encoder: Encoder, reset: bool) -> NDArray[Any]:
        """X as [n, leads, samples]. Raises `UserError` if it cannot be that."""
        if not (self.leads is None or (np.ndim(self.leads) == 1 and len(self.leads))):
            raise UserError(f"leads={self.leads!r} is no list of names: give a list of them, such as ['I', 'II']")
        count = len(encoder.config.leads if self.leads is None else self.leads)
        X = _array(X) if isinstance(X, list | tuple) else _numpy(X)
        if getattr(X, "ndim", 2) > 2:
            if X.ndim != 3 or X.shape[1] != count:
                raise UserError(f"X has shape {list(X.shape)}, but there are {count} leads: give [n, leads, samples]")
            X = np.asarray(X).reshape(len(X), X.shape[1] * X.shape[2])
        x: NDArray[Any] = validate_data(self, X, reset=reset, dtype=[np.float32, np.float64])
        if x.shape[1] % count:
            raise UserError(
                f"X has {x.shape[1]} columns, which are no whole number of samples of {count} leads: give "
                "[n, leads, samples] or [n, leads * samples]"
            )
        return x.reshape(len(x), count, -1)

    @property
    def _n_features_out(self) -> int:
        return self.encoder_.dim

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.input_tags.three_d_array = True
        return tags


def _array(X: Any) -> Any:
    """A list of ECGs as one array. Raises `UserError` if they are of different sizes."""
    try:
        return np.asarray([_numpy(x) for x in X])
    except ValueError as error:
        raise UserError(
            "X is a list of ECGs of different sizes: give [n, leads, samples], or call encoder.embed, which takes them"
        ) from error


def _numpy(X: Any) -> Any:
    """A torch tensor as an array; all else as it is."""
    if not isinstance(X, torch.Tensor):
        return X
    X = X.detach().cpu()
    return (X.float() if X.dtype == torch.bfloat16 else X).numpy()
