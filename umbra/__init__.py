"""The public Python API: `load_encoder` with its `Encoder`, `load_predictor` with its `Predictor`,
`EncoderTransformer`, and the version.

Imports are lazy: torch is loaded only with what needs it, scikit-learn only with `EncoderTransformer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbra.encoders.encoder import Encoder
    from umbra.hub import load_encoder
    from umbra.predictor import Predictor, load_predictor
    from umbra.transformer import EncoderTransformer as EncoderTransformer

    __version__: str

# not EncoderTransformer, whose package may be missing
__all__ = ["Encoder", "Predictor", "__version__", "load_encoder", "load_predictor"]


def __getattr__(name: str) -> Any:
    if name == "load_encoder":
        from umbra.hub import load_encoder

        return load_encoder
    if name in ("Predictor", "load_predictor"):
        from umbra import predictor

        return getattr(predictor, name)
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
