"""Evaluates one encoder on many tasks: data are opened and features computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainer.evaluate import leaks
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import open_encoder
from trainer.evaluate.probe import features
from trainer.evaluate.reading import read_task
from trainer.evaluate.result import run
from trainer.evaluate.store import Store, folder_of


def run_all(
    configs: Sequence[TransferConfig], say: Callable[[str], None]
) -> Iterator[tuple[TransferConfig, dict[str, Any]]]:
    """The result of each task in turn; all are read before the first is evaluated. `say` takes notes.

    The configs differ in their tasks and outputs only. A random encoder is opened for each task, since its batch norm
    takes its statistics from the task's train records.
    """
    tasks = [read_task(config) for config in configs]
    fresh = configs[0].encoder == "random" or configs[0].mode == "scratch"
    store: Store | None = None
    given, before = None, tasks[0]
    for config, task in zip(configs, tasks):
        for note in task.notes:
            say(f"note: {note}" if len(tasks) == 1 else f"note: {task.name}: {note}")
        if store is None or fresh:
            encoder = open_encoder(config, task.train)
            seen = leaks.check(config, encoder.config)
            store = Store(encoder, config.batch, folder_of(config))
            if config.mode == "probe":
                together = [task] if fresh else tasks
                store.of(*(part for t in together for part in (t.train, t.val, t.test)))
                say(f"features: {store.computed} records computed{f', kept in {store.path}' if store.path else ''}")
            for note in store.notes:
                say(f"note: {note}")
        if config.mode == "probe" and (given is None or fresh or not task.same_records(before)):
            given = features(task, store)
        before = task
        yield config, run(config, task, encoder, given, store.key, seen)
