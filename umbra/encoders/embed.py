"""`Encoder.embed`: ECGs of any rate, lead order and length -> features, by the steps that make a shard."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from umbra.encoders.recordings import Given, Group, Placed, Stated, arranged, finite, given, placed
from umbra.encoders.resampling import resample
from umbra.errors import UserError
from umbra.signal import implausible, ratio, resampled_length

if TYPE_CHECKING:
    from umbra.encoders.encoder import Encoder

POOLS = ("mean", "tokens", None)
POLICIES = ("refuse", "fill")
MIN_SECONDS = 1.0
MOST_VALUES = 1 << 25  # of a recording that are resampled at once


@dataclass(frozen=True)
class EmbedInfo:
    """What was done to an ECG before it was embedded.

    `windows` of the encoder's length were cut; the last `unused` seconds did not fill one; a shorter ECG was `padded`
    by that many seconds of zeros. The leads `derived` were computed from I and II, those `missing` are zeros; `ignored`
    are signals that are no known lead. `filled`: values that were not finite. `implausible`: why it may be none in mV.
    """

    windows: int
    padded: float
    unused: float
    derived: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]
    filled: int
    implausible: str


@dataclass(frozen=True)
class _Prepared:
    """A group with finite values, how its leads are placed, and the windows of each of its ECGs."""

    group: Group
    place: Placed
    filled: int
    total: int
    windows: int


def embed(
    encoder: Encoder,
    ecg: Any,
    *,
    rate: float | None,
    leads: Sequence[str] | None,
    units: str | float | None,
    pool: str | None,
    device: str | torch.device | None,
    batch: int,
    progress: bool,
    nan: str,
    return_info: bool,
    source: Mapping[str, Any] | None,
) -> Any:
    """See `Encoder.embed`."""
    _check(pool, batch, nan, source)
    wanted, length = encoder.config.leads, encoder.config.samples
    found = given(ecg, Stated(rate, leads, units, {} if source is None else source, wanted))
    names = [f"ecg[{i}]" if found.form == "list" else "ecg" for i in range(len(found.groups))]
    prepared = [part for group, name in zip(found.groups, names) for part in _prepared(encoder, group, nan, name)]
    if device is not None:
        _move(encoder, device)
    reasons: list[str] = []
    batch = min(int(batch), sys.maxsize)
    parts = _batches(_windows(prepared, encoder, batch, reasons), batch)
    bar = _Bar(sum(len(part.group.x) * part.windows for part in prepared), progress)
    features = _features(encoder, parts, pool, bar.tick)
    infos = _infos(prepared, length / encoder.config.rate, encoder.config.rate, reasons)
    _warn(infos)
    result = _pooled(features, [info.windows for info in infos], pool, found)
    return (result, infos[0] if found.form == "one" else infos) if return_info else result


def _check(pool: Any, batch: Any, nan: Any, source: Any) -> None:
    if pool not in POOLS:
        raise UserError(f"pool={pool!r} is unknown; use 'mean' (over windows), 'tokens' or None (each window)")
    if isinstance(batch, bool) or not isinstance(batch, Integral) or int(batch) < 1:
        raise UserError(f"batch={batch!r} must be a whole number of windows, at least 1")
    if nan not in POLICIES:
        raise UserError(f"nan={nan!r} is unknown; use 'refuse' or 'fill'")
    if source is not None and not isinstance(source, Mapping):
        raise UserError(f"source={source!r} must be a mapping, such as {{'leads_last': True}}")
    if own := [key for key in ("rate", "leads", "units") if key in (source or {})]:
        raise UserError(f"source: '{own[0]}' is an argument of embed: give {own[0]}=...")


def _move(encoder: Encoder, device: str | torch.device) -> None:
    try:
        torch.zeros(1, device=device).cpu()
        encoder.to(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"device={device!r} cannot be used here: {reason}") from error


def _prepared(encoder: Encoder, group: Group, nan: str, name: str) -> Iterator[_Prepared]:
    """Raises `UserError` for values that are not finite, leads that cannot be used, and ECGs that are too short."""
    window = encoder.config.samples / encoder.config.rate
    samples = group.x.shape[2]
    total = resampled_length(samples, group.rate, encoder.config.rate)
    if samples / group.rate < min(MIN_SECONDS, window) and total < encoder.config.samples:
        raise UserError(f"{name} has {samples} samples, {samples / group.rate:.3g} s at rate={group.rate:g}: too short")
    for part, filled in finite(group, nan, name):
        place = placed(part.names, encoder.config.leads)
        yield _Prepared(part, place, filled, total, max(total // encoder.config.samples, 1))


def _windows(prepared: Sequence[_Prepared], encoder: Encoder, most: int, reasons: list[str]) -> Iterator[Tensor]:
    """Windows in mV [n, leads, samples], ECG by ECG, at most about `most` at once; appends to `reasons` for each."""
    config, device = encoder.config, next(encoder.parameters()).device
    precise = torch.float32 if device.type == "mps" else torch.float64
    for part in prepared:
        group, length = part.group, config.samples
        up, down = ratio(group.rate, config.rate)
        rows = list(part.place.rows)
        step = max(min(most, MOST_VALUES * up // (len(rows) * length * down)), 1)
        at_once = max(step // part.windows, 1)
        for first in range(0, len(group.x), at_once):
            x = group.x[first : first + at_once]
            x = x if rows == list(range(x.shape[1])) else x[:, rows]
            for begin in range(0, part.windows, step):
                end = min(begin + step, part.windows)
                stop = min(end * length, part.total)
                mv = resample(x, up, down, begin * length, stop, device, precise) * group.factor
                mv = F.pad(mv.float(), (0, end * length - stop))
                cut = mv.unflatten(2, (end - begin, length)).transpose(1, 2).flatten(0, 1)
                reasons += [_reason(window[:, : part.total]) for window in cut.cpu()]
                yield rounded(arranged(cut, part.place, config.leads))


def rounded(mv: Tensor) -> Tensor:
    """Whole microvolts, as shards hold them."""
    return (mv * 1000).round() / 1000


def _reason(window: Tensor) -> str:
    """Why a window [leads, samples], without padding, is implausible; "" if it is not."""
    x = window.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        reason, detail = implausible(x, x.min(1), x.max(1))
    return f"{detail}; is units= right?" if reason in ("units", "amplitude") else detail


def _batches(parts: Iterator[Tensor], batch: int) -> Iterator[Tensor]:
    """The same windows, `batch` at a time."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= batch:
            *full, rest = torch.cat(held).split(batch)
            yield from full
            held = [rest]
    yield from torch.cat(held).split(batch)


def _features(encoder: Encoder, batches: Iterator[Tensor], pool: str | None, tick: Callable[[int], None]) -> Tensor:
    """[windows, dim], with tokens [windows, tokens, features], on the CPU; in eval mode, without gradients."""
    modes, out = [(module, module.training) for module in encoder.modules()], []
    encoder.eval()
    try:
        with torch.no_grad():
            for x in batches:
                out.append((encoder.tokens(x) if pool == "tokens" else encoder(x)).float().cpu())
                tick(len(x))
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(out)


def _pooled(features: Tensor, windows: Sequence[int], pool: str | None, found: Given) -> Any:
    each: Any
    if pool == "mean" and len(set(windows)) == 1:
        each = features.unflatten(0, (-1, windows[0])).mean(1)
    else:
        each = list(features.split(list(windows)))
        if pool == "mean":
            each = torch.stack([one.mean(0) for one in each])
        if pool == "tokens":
            each = [one.flatten(0, 1) for one in each]
    if found.form == "one":
        each = each[0]
    elif found.form == "batch" and isinstance(each, list):
        each = torch.stack(each)
    if found.tensor is not None:
        return each.to(found.tensor.device)
    return [one.numpy() for one in each] if isinstance(each, list) else each.numpy()


# ---- what is said ----


class _Bar:
    """A line of progress on the terminal."""

    def __init__(self, total: int, shown: bool) -> None:
        self.total, self.shown, self.done = total, shown, 0

    def tick(self, count: int) -> None:
        self.done += count
        if self.shown:
            end = "\n" if self.done == self.total else ""
            print(f"\rembedded {self.done:,} of {self.total:,} windows", end=end, file=sys.stderr, flush=True)


def _infos(prepared: Sequence[_Prepared], window: float, rate: float, reasons: Sequence[str]) -> list[EmbedInfo]:
    infos, start = [], 0
    for part in prepared:
        seconds = part.total / rate
        for _ in range(len(part.group.x)):
            own = [reason for reason in reasons[start : start + part.windows] if reason]
            start += part.windows
            infos.append(
                EmbedInfo(
                    windows=part.windows,
                    padded=max(window - seconds, 0.0),
                    unused=max(seconds - part.windows * window, 0.0),
                    derived=part.place.derived,
                    missing=part.place.missing,
                    ignored=part.place.unknown,
                    filled=part.filled,
                    implausible=own[0] if own else "",
                )
            )
    return infos


def _warn(infos: Sequence[EmbedInfo]) -> None:
    """One warning for all that a user should know, at the line that called `Encoder.embed`."""
    notes: Counter[str] = Counter()
    first: dict[str, str] = {}
    for info in infos:
        for kind, text in _notes(info):
            notes[kind] += 1
            first.setdefault(kind, text)
    if notes:
        of = f" (in {{}} of {len(infos)} ECGs)" if len(infos) > 1 else ""
        warnings.warn("; ".join(first[kind] + of.format(count) for kind, count in notes.items()), stacklevel=4)


def _notes(info: EmbedInfo) -> Iterator[tuple[str, str]]:
    """(kind, text) of what may make the features worse than the user expects."""
    if info.missing:
        yield f"missing {info.missing}", f"missing leads are filled with zeros: {', '.join(info.missing)}"
    if info.ignored:
        yield f"ignored {info.ignored}", f"signals that are no known lead are ignored: {', '.join(info.ignored)}"
    if info.padded:
        yield "padded", f"shorter than the encoder's window: padded with {info.padded:.3g} s of zeros"
    if info.unused >= MIN_SECONDS:
        yield "unused", f"the last {info.unused:.3g} s do not fill a window and are not used"
    if info.filled:
        yield "filled", f"{info.filled} values that were not finite are interpolated"
    if info.implausible:
        yield "implausible", f"implausible as an ECG in mV: {info.implausible}"
