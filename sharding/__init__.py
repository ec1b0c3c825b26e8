"""Converts ECG recordings of many formats into shards."""

from umbra.errors import require_extra

require_extra("shard", "omegaconf", "yaml", "pyarrow", "scipy", "h5py", "openpyxl", "tqdm", "matplotlib")
