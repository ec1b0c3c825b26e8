"""Converts ECG recordings of many formats into shards."""

from umbra.drawing import without_missing_backend
from umbra.errors import require_extra

PACKAGES = ("omegaconf", "yaml", "pyarrow", "scipy", "h5py", "openpyxl", "tqdm", "matplotlib", "soundfile", "wfdb")
require_extra("shard", *PACKAGES)
without_missing_backend()
