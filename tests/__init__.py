"""A package of its own, so that the `tests` that NeuroKit2 0.2.12 installs beside it does not stand in its place."""
