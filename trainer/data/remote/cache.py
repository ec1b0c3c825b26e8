"""Remote shards: prefetched into a folder of limited size that the processes of a machine share.

Which shards a machine needs at which steps follows from the order of samples alone (`needs.needs`). The first process
of a machine fetches them in that order and removes what all its processes have read; the others wait for it. They
communicate through a few integers in a memory-mapped file, the *board*. Runs may share a folder: a download is locked,
and on its board a run claims what it needs, so that no other run removes it. Locks and claims end with their process.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from trainer.data.mixture import Mixture
from trainer.data.order import Order
from trainer.data.remote.board import NEVER, Board, Node, ShardError, claimed_by_others
from trainer.data.remote.fetch import Closed, FetchError, Remote
from trainer.data.remote.needs import Need, lanes_of, needs, needs_of, smallest_of_run, smallest_of_source
from trainer.data.remote.store import POLL, obtain, on_disk, size_of, sweep
from umbra.errors import UserError
from umbra.schema import Manifest, Shard


def budget(gb: float, least: int, whole: int, folder: Path) -> int:
    """Bytes that the cache may take. `gb` = 0: twice the minimum, at most `whole`, the size of all shards.

    Raises `UserError` if `gb` is below the minimum that works (`least` bytes), or more than is free on the disk.
    """
    if gb and gb * 1e9 < least:
        raise UserError(
            f"data.cache_gb={gb:g} is too small: {_gb(least)} is the minimum that works; a lower data.block_shards or "
            "data.lanes needs less"
        )
    size = min(int(gb * 1e9) or 2 * least, whole)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free + sum(map(size_of, folder.glob("*.tar")))
    if free < size:
        raise UserError(
            f"data.cache={folder} has {free / 1e9:.3f} GB free, not {_gb(size)}: free some, choose another folder, or "
            f"lower data.cache_gb ({_gb(least)} is the minimum that works)"
        )
    return size


def _gb(size: int) -> str:
    return f"{-(-size // 1_000_000) / 1000:g}"


class Cache:
    """The shards of a run on one machine. `wait(step)` before a step's samples are read, `done(step)` after.

    `plan` gives shards by index into `shards`, of which those in `pinned` stay for the whole run; the cache may use
    `size` bytes. Errors call a shard `source` and its name. `token` is shared by all processes of this start of the
    run, and by no other. The fetching threads run
    in the first process of the machine.
    """

    def __init__(
        self,
        remote: Remote,
        folder: Path,
        shards: Sequence[Shard],
        plan: Iterable[Need],
        size: int,
        node: Node,
        start: int,
        stop: int,
        token: str,
        pinned: Sequence[int] = (),
        threads: int = 4,
        source: str = "",
    ) -> None:
        self._source = source
        self.counts = {"fetched": 0, "hits": 0, "bytes": 0}
        self._remote, self._folder, self._shards, self._size, self._stop = remote, folder, shards, size, stop
        self._leads, self._stopped = node.leads, threading.Event()
        self._turn, self._lock = threading.Lock(), threading.Lock()
        with on_disk(folder, "the board"):
            self._board = Board(folder, token, node, len(shards), start)
        if not node.leads or start >= stop:
            self._threads = []
            return
        sweep(folder)
        self._plan = chain((Need(shard, start, stop) for shard in pinned), plan)
        self._upcoming = deque(islice(self._plan, 2 * len(shards)))
        self._pending: list[Need] = []  # admitted, not yet in place
        self._last: dict[int, int] = {}  # admitted shards: the last step that needs them
        self._idle = {i for i, shard in enumerate(shards) if (folder / shard.name).is_file()}
        self._note_ready()
        self._threads = [threading.Thread(target=self._work, name="fetch", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def wait(self, step: int) -> None:
        """Returns once all shards of `step` are in place. Raises `ShardError` if one of them is not available."""
        if (error := self.failure_by(step)) is not None:
            raise error

    def failure_by(self, step: int, unless: Callable[[], bool] = lambda: False) -> ShardError | None:
        """Like `wait`, but returns the error: called for a later step, it leaves time for a checkpoint.

        Stops waiting once `unless()` is true.
        """
        look = time.monotonic() + 1
        while self._board.ready <= min(step, self._stop - 1):
            error = self._board.failure()
            if error is not None and error.step <= step:
                return error
            if unless():
                return None
            if self._stopped.wait(POLL):
                raise FetchError("data.cache was closed while waiting for a step")
            if not self._leads and time.monotonic() > look:
                look = time.monotonic() + 1
                if not self._board.leader_lives() and self._board.ready <= step < self._board.failed:
                    raise FetchError("the process that fetches the shards of this machine has ended")
        return None

    def done(self, step: int) -> None:
        """Reports that this process has read its samples of all steps up to `step`."""
        self._board.has_read(step)

    @property
    def failure(self) -> ShardError | None:
        """The first shard that is not available: known once retries end, usually long before it is needed."""
        return self._board.failure()

    def meters(self) -> dict[str, float]:
        """Metrics of the fetching process: fraction of shards that were already in the cache, GB fetched so far."""
        found = self.counts["hits"] + self.counts["fetched"]
        return {"cache_hits": self.counts["hits"] / max(found, 1), "fetched_gb": self.counts["bytes"] / 1e9}

    @property
    def size(self) -> int:
        """Bytes that the shards may take; known only to the fetching process."""
        return self._size

    @property
    def ahead(self) -> int:
        """Number of steps whose shards are in place and that this machine has not read yet."""
        return self._board.ready - int(self._board.done.min())

    def close(self) -> None:
        """Ends the threads; a download in progress is abandoned."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=2)
        self._board.close()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work(self) -> None:
        """A fetching thread. Needs are admitted one at a time, in order, and fetched in parallel."""
        try:
            while (need := self._next()) is not None:
                self._bring(need)
        except Closed:
            pass
        except Exception as error:
            with self._lock:
                self._board.fail(self._board.ready, "", f"a thread that fetches shards failed: {error!r}")
            raise

    def _next(self) -> Need | None:
        """Admits the next need once there is space; None at the end, or if all later needs come after a failure.

        Needs are admitted in order of their first step. So when the slowest process waits for a shard, everything
        admitted is needed at the very step that it waits for: the minimum size is always enough.
        """
        with self._turn:
            if not self._upcoming or self._upcoming[0].first > self._board.failed:
                return None
            need = self._upcoming[0]
            while not self._admit(need):
                if self._stopped.wait(2 * POLL):
                    raise Closed
            return need

    def _admit(self, need: Need) -> bool:
        """Frees space for the next need and admits it; False if there is not enough."""
        read = int(self._board.done.min())
        with self._lock, _exclusive(self._folder):
            for shard in [shard for shard, last in self._last.items() if last < read]:
                del self._last[shard]
                self._board.claims[shard] = 0
                self._idle.add(shard)
            if need.shard not in self._last and need.shard not in self._idle and not self._evict(need.shard):
                return False
            self._idle.discard(need.shard)
            self._last[need.shard] = max(need.last, self._last.get(need.shard, 0))
            self._board.claims[need.shard] = 1
            self._pending.append(self._upcoming.popleft())
            self._upcoming.extend(islice(self._plan, 1))
            return True

    def _evict(self, shard: int) -> bool:
        """Removes idle shards, the one needed latest first, until `shard` fits; False if that is not enough."""
        over = sum(self._shards[s].bytes for s in (shard, *self._last, *self._idle)) - self._size
        if over <= 0:
            return True
        if over > sum(self._shards[s].bytes for s in self._idle):
            return False
        next_use = {need.shard: need.first for need in reversed(self._upcoming)}
        others = claimed_by_others(self._folder, self._board)
        for idle in sorted(self._idle, key=lambda s: next_use.get(s, NEVER), reverse=True):
            if over > 0:
                over -= self._shards[idle].bytes
                self._idle.discard(idle)
                if idle not in others:
                    (self._folder / self._shards[idle].name).unlink(missing_ok=True)
        return True

    def _bring(self, need: Need) -> None:
        shard = self._shards[need.shard]
        try:
            with on_disk(self._folder, shard.name):
                fetched = obtain(self._remote, shard, self._folder, self._stopped)
        except FetchError as error:
            how = f"fix that, or leave the shard out with data.exclude=[{self._source}{shard.name}]"
            if shard.split != "train":
                how = "fix that, or turn off held-out losses (log.heldout_every=0)"
            with self._lock:
                self._board.fail(need.first, shard.name, f"shard {shard.name} cannot be fetched: {error}; {how}")
            return
        with self._lock:
            self.counts["fetched" if fetched else "hits"] += 1
            self.counts["bytes"] += shard.bytes if fetched else 0
            self._pending.remove(need)
            self._note_ready()

    def _note_ready(self) -> None:
        """Publishes the first step whose shards are not all in place."""
        self._board.ready = min((n.first for n in (*self._pending, *islice(self._upcoming, 1))), default=self._stop)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """The lock under which claims are made and shards removed."""
    with open(folder / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def space_needed(
    manifest: Manifest,
    order: Order | Mixture,
    node: Node,
    start: int,
    stop: int,
    pinned: Sequence[Shard],
    source: str = "",
) -> tuple[int, int]:
    """Bytes: the minimum cache size that works for these steps, and the size of all shards.

    `source`: that of a mixture that the data set is.
    """
    sizes, fixed = [shard.bytes for shard in manifest.of_split("train")], sum(shard.bytes for shard in pinned)
    if isinstance(order, Mixture):
        least = smallest_of_source(order, source, start, stop, sizes)
    else:
        least = smallest_of_run(order, lanes_of(node.ranks, node.world, order.lanes), start, stop, sizes)
    return least + fixed, sum(sizes) + fixed


def open_cache(
    remote: Remote,
    folder: Path,
    manifest: Manifest,
    order: Order | Mixture,
    node: Node,
    start: int,
    stop: int,
    gb: float,
    token: str,
    pinned: Sequence[Shard] = (),
    threads: int = 4,
    source: str = "",
) -> Cache:
    """The cache of the training steps `start` to `stop - 1`, with `pinned` shards for the whole run.

    `source`: that of a mixture that the data set is. Raises `UserError` if `gb` is too small or the disk is too full.
    """
    shards = manifest.shards
    first = next(i for i, shard in enumerate(shards) if shard.split == "train")
    needed = space_needed(manifest, order, node, start, stop, pinned, source) if node.leads else (0, 0)
    size = budget(gb, *needed, folder) if node.leads else 0
    if isinstance(order, Mixture):
        read = needs_of(order, source, start, stop)
    else:
        read = needs(order, lanes_of(node.ranks, node.world, order.lanes), start, stop)
    plan = (Need(need.shard + first, need.first, need.last) for need in read)
    kept, name = [shards.index(shard) for shard in pinned], f"{source}/" if source else ""
    return Cache(remote, folder, shards, plan, size, node, start, stop, token, kept, threads, name)
