"""Which source the samples of a mixture come from: a pure function of their position, for any number of sources.

Of the first t samples each source with the share w of them gives floor(t w) or ceil(t w): never one sample off. The
schedule is that of the earliest deadline first. Sample j of a source may not stand before position floor(j / w), so
that it is not early, nor after ceil((j + 1) / w) - 1, so that it is not late; each position is given to the source that
may be next and whose deadline is the first. That this always works is R. Tijdeman's theorem ("The chairman assignment
problem", Discrete Mathematics 32, 1980; as scheduling: S. Baruah et al., "Proportionate progress", Algorithmica 15,
1996). Whole shares repeat after their sum, so that one period is kept as a table and any position is one look-up away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
PERIOD = 1 << 16  # the most positions of a period


def whole_shares(weights: Sequence[float], period: int = PERIOD) -> tuple[int, ...]:
    """The smallest whole numbers in the ratio of these positive `weights`, taken as they are written in decimals.

    If their sum would exceed `period`, they are rounded to shares of `period`, none of them to 0.
    """
    parts = [Fraction(str(weight)) for weight in weights]
    common = math.lcm(*(part.denominator for part in parts))
    shares = [int(part * common) for part in parts]
    shares = [share // math.gcd(*shares) for share in shares]
    total = sum(shares)
    if total <= period:
        return tuple(shares)
    rounded = [max(1, share * period // total) for share in shares]
    while sum(rounded) != period:  # the largest remainders first; at most as many rounds as there are sources
        up = 1 if sum(rounded) < period else -1
        off = [up * (share * period - now * total) for share, now in zip(shares, rounded)]
        may = [n for n, now in enumerate(rounded) if now + up > 0]
        rounded[max(may, key=lambda n: off[n])] += up
    return tuple(share // math.gcd(*rounded) for share in rounded)


@dataclass(frozen=True)
class Schedule:
    """Positions 0, 1, 2, ... of a mixture, given to its sources in the ratio of their whole `shares`."""

    shares: tuple[int, ...]

    @property
    def period(self) -> int:
        return sum(self.shares)

    def at(self, positions: Indices) -> tuple[Indices, Indices]:
        """(source, how many samples of it stand before) at positions of any shape."""
        source, place = self._tables
        periods, at = np.divmod(positions, self.period)
        found = source[at]
        return found, periods * np.array(self.shares)[found] + place[at]

    def counts(self, position: int) -> list[int]:
        """How many of the positions before this one each source has."""
        source, _ = self._tables
        periods, at = divmod(position, self.period)
        more = np.bincount(source[:at], minlength=len(self.shares))
        return [periods * share + int(n) for share, n in zip(self.shares, more)]

    def positions(self, source: int, places: Indices) -> Indices:
        """Where the samples `places` (0, 1, ...) of a source stand: the inverse of `at`."""
        periods, at = np.divmod(places, self.shares[source])
        return periods * self.period + self._standing[source][at]

    @property
    def _tables(self) -> tuple[Indices, Indices]:
        return _period(self.shares)

    @cached_property
    def _standing(self) -> list[Indices]:
        source, _ = self._tables
        return [np.flatnonzero(source == n) for n in range(len(self.shares))]


@lru_cache(maxsize=8)
def _period(shares: tuple[int, ...]) -> tuple[Indices, Indices]:
    """One period: the source of each position, and how many of its samples stand before."""
    period, numbers = sum(shares), range(len(shares))
    given, deadline = [0] * len(shares), [-(-period // share) - 1 for share in shares]
    source, place = np.empty(period, np.int64), np.empty(period, np.int64)
    for t in range(period):
        now = min((deadline[n], n) for n in numbers if given[n] * period < (t + 1) * shares[n])[1]
        source[t], place[t] = now, given[now]
        given[now] += 1
        deadline[now] = -(-(given[now] + 1) * period // shares[now]) - 1
    return source, place
