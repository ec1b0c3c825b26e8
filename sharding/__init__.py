"""Converts ECG recordings of many formats into shards."""

from umbra.errors import require_extra

PACKAGES = ("omegaconf", "yaml", "pyarrow", "scipy", "h5py", "openpyxl", "tqdm", "matplotlib", "soundfile", "wfdb")
require_extra("shard", *PACKAGES)
