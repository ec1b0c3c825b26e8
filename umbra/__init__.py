"""The public Python API: `load_encoder`, the `Encoder` that it returns, `EncoderTransformer` of it, and the version.

Imports are lazy: torch is loaded only with `load_encoder`, scikit-learn only with `EncoderTransformer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbra.encoders.encoder import Encoder
    from umbra.hub import load_encoder
    from umbra.transformer import EncoderTransformer as EncoderTransformer

    __version__: str

__all__ = ["Encoder", "__version__", "load_encoder"]  # not EncoderTransformer, whose package may be missing


def __getattr__(name: str) -> Any:
    if name == "load_encoder":
        from umbra.hub import load_encoder

        return load_encoder
    if name == "Encoder":
        from umbra.encoders.encoder import Encoder

        return Encoder
    if name == "EncoderTransformer":
        try:
            from umbra.transformer import EncoderTransformer
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("sklearn"):
                raise
            raise ImportError("EncoderTransformer needs scikit-learn: pip install 'umbra[sklearn]'") from error
        return EncoderTransformer
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("umbra")
        except PackageNotFoundError:
            return "0+not-installed"
    raise AttributeError(f"module 'umbra' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "EncoderTransformer"]
