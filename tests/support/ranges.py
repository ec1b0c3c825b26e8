"""The keys of a config that have a range."""

import dataclasses
import typing


def ranged(schema: type, prefix: str = "") -> set[str]:
    """Dotted keys of a config dataclass whose numbers are bounded."""
    found, hints = set(), typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key = prefix + field.name.rstrip("_")
        if dataclasses.is_dataclass(hints[field.name]):
            found |= ranged(hints[field.name], f"{key}.")
        elif field.metadata.get("wanted"):
            found.add(key)
    return found
