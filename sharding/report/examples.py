"""Examples of rejected records, read again from the input and plotted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sharding.plan import Plan
from sharding.report.pictures import draw_ecg
from sharding.sources import protocol
from umbra import leads

EXAMPLES = 3


@dataclass
class Example:
    """A rejected record or window: `picture` is a PNG next to the page; if empty, `why_not` says why."""

    record: str
    window: int | None
    detail: str
    picture: str = ""
    why_not: str = ""


def examples(
    folder: Path, plan: Plan, root: Path, candidates: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[Example]]:
    """Up to three examples of each reason, plotted into `folder`; if none can be read, one that says why."""
    out: dict[str, list[Example]] = {}
    for reason, rows in candidates.items():
        shown: list[Example] = []
        unread: list[Example] = []
        for row in rows:
            example = Example(row["record"], row["window"], row["detail"] or "")
            try:
                recording = _read_again(plan, root, row["record"])
            except (protocol.Rejected, OSError) as error:
                example.why_not = (
                    error.reason if isinstance(error, protocol.Rejected) else error.strerror or "unreadable"
                )
                unread.append(example)
                continue
            example.picture = f"rejected-{reason}-{len(shown) + 1}.png"
            _draw_recording(folder / example.picture, recording, plan.content, row["window"] or 0)
            shown.append(example)
            if len(shown) == EXAMPLES:
                break
        out[reason] = shown or unread[:1]
    return out


def _read_again(plan: Plan, root: Path, record: str) -> protocol.Recording:
    """Reads the leads of the data set, or those that the record has. Raises `Rejected` and `OSError`."""
    from omegaconf import OmegaConf

    options: Any = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(protocol.SourceConfig), plan.content["source"])
    )
    source, wanted = protocol.module(options.format), plan.content["leads"]
    try:
        return source.read(root, record, wanted, options)
    except protocol.Rejected as error:
        if error.reason != "missing_lead":
            raise
        present = {leads.canonical(name) for name in source.head(root, record, options).leads}
        if not present & set(wanted):
            raise
        return source.read(root, record, [name for name in wanted if name in present], options)


def _draw_recording(path: Path, recording: protocol.Recording, content: Mapping[str, Any], window: int) -> None:
    first = round(window * content["seconds"] * recording.rate)
    part = slice(first, first + round(10 * recording.rate)) if first < recording.mv.shape[1] else slice(0, None)
    mv, names = recording.mv[:, part], recording.leads
    if not leads.missing(names, content["leads"]):
        mv, names = leads.arrange(mv, names, content["leads"]), content["leads"]
    if recording.missing is not None:
        mv = np.where(recording.missing[part], np.float32(np.nan), mv)
    draw_ecg(path, mv, recording.rate, names)
