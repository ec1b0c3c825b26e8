"""Which trials this process runs, and in what turn: each is claimed by a lock, done ones are skipped.

Any number of processes may work on one study, on one machine or several that share its output. A process begins with
its own share and goes on with what nobody runs: among them the trials of a process that is dead, whose locks are free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trainer.study.cells import Trial
from trainer.study.config import CONFIG, UNTRAINED, StudyConfig
from trainer.study.report import RESULTS, report, show
from trainer.study.steps import STEPS, Steps
from trainer.study.trial import can_begin, is_done, run_trial
from umbra.errors import UserError
from umbra.files import read_text, write_text
from umbra.lock import Held, lock

FOLDER = "trials"


def in_turn(config: StudyConfig) -> list[Trial]:
    """All trials: first the own share of `part` among `parts`, then the others.

    Neighbours are of different rotations, so that processes that begin together build the shards of different ones;
    methods that copy another's architecture come last.
    """
    methods = sorted(config.compared, key=lambda method: method in UNTRAINED)
    trials = [Trial(r, method, seed) for method in methods for seed in config.seeds for r in config.rotations]
    mine = trials[config.part :: config.parts]
    return mine + [trial for trial in trials if trial not in mine]


class Share:
    """What this process does of a study, from its start on."""

    def __init__(self, config: StudyConfig, output: Path) -> None:
        self.config, self.output = config, output
        self.trials = in_turn(config)
        self._failed_before = {trial: self._failed(trial) for trial in self.trials}

    def work(self, steps: Steps) -> None:
        """Runs trials until none is left that can begin and that nobody runs.

        Raises the `UserError` of a trial that fails; processes that run then leave it to those that start later.
        """
        while any(self._run(trial, steps) for trial in self.trials):
            pass

    def _run(self, trial: Trial, steps: Steps) -> bool:
        """Whether the trial was there to be run, and now is done."""
        if not self._wanted(trial):
            return False
        with _claimed(self._path(trial, "lock")) as ours:
            if not ours or not self._wanted(trial):
                return False
            try:
                run_trial(self.config, trial, steps)
            except UserError as error:
                write_text(self._path(trial, "failed"), f"{error}\n")
                raise
            self._path(trial, "failed").unlink(missing_ok=True)
        return True

    def _wanted(self, trial: Trial) -> bool:
        failed = self._failed(trial) not in (0, self._failed_before[trial])
        return not failed and not is_done(self.config, trial) and can_begin(self.config, trial)

    def _failed(self, trial: Trial) -> int:
        """When the trial failed last, by the clock of the file system; 0: it did not."""
        with contextlib.suppress(FileNotFoundError):
            return self._path(trial, "failed").stat().st_mtime_ns
        return 0

    def _path(self, trial: Trial, ending: str) -> Path:
        return self.output / FOLDER / f"{trial.name}.{ending}"

    def end(self) -> bool:
        """Writes the table if all trials are done, else says what is left; whether they are."""
        left = [trial for trial in self.trials if not is_done(self.config, trial)]
        if not left:
            with lock(self.output / "report.lock"):
                if self.config.parts == 1 or not self._reported():
                    report(self.config, self.output)
                else:
                    show(self.output)
            return True
        done = len(self.trials) - len(left)
        print(f"# {done} of {len(self.trials)} trials are done; the process that does the last one writes the table")
        for trial in left:
            if self._failed(trial):
                said = read_text(self._path(trial, "failed"), "run the same study again").strip()
                print(f"# trial {trial.name} failed: {said}", flush=True)
        return False

    def _reported(self) -> bool:
        """Whether another process of this study has written the table since the last change."""
        place = self.output / RESULTS
        sources = [path for path in (self.output / CONFIG, self.output / STEPS) if path.is_file()]
        return place.is_file() and all(path.stat().st_mtime_ns <= place.stat().st_mtime_ns for path in sources)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Holds the lock for the block, or tells it that another process does."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(path, wait=False))
        except Held:
            yield False
            return
        yield True
