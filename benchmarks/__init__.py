"""Measurements, both sides in one run."""

import trainer  # noqa: F401  # decides how threads wait, before torch is loaded
