"""`python -m sharding synth | build | join | status | verify | report`: from recordings to a sharded data set."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from umbra.config import command, dump, load, split_words
from umbra.errors import UserError, near_miss

if TYPE_CHECKING:
    from sharding.finish import Outcome

USAGE = """python -m sharding COMMAND

  synth key=value ...                   write synthetic WFDB recordings (output=FOLDER)
  build CONFIG.yaml key=value ...       recordings -> shards (input=FOLDER output=FOLDER rate=100 seconds=10 workers=2)
  build CONFIG.yaml ... --dry-run       print the resolved config and what would be built
  join PART PART ... output=FOLDER      join built data sets, keeping splits and labels (workers=2 --dry-run)
  status FOLDER                         show the progress of a build
  verify FOLDER                         re-read a finished data set and compare it with its manifest
  report FOLDER [input=FOLDER]          write an HTML report (with the input: examples of rejected records)
"""


CONFIGS = {
    "synth": "sharding.synthetic:SynthConfig",
    "build": "sharding.options:BuildConfig",
    "join": "sharding.join:JoinConfig",
}


def main(words: list[str]) -> int:
    commands = {"synth": synth, "build": build, "join": join, "status": status, "verify": verify, "report": report}
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] not in commands:
        raise UserError(f"unknown command '{words[0]}'{near_miss(words[0], commands)}")
    commands[words[0]](words[1:])
    return 0


def synth(words: list[str]) -> None:
    from sharding.synthetic import SynthConfig, write

    config = load(SynthConfig, None, words)
    write(config, progress=True)
    print(f"synthetic recordings in {config.output}")


def build(words: list[str]) -> None:
    from sharding import build as building
    from sharding.options import BuildConfig

    dry = "--dry-run" in words
    config = load(BuildConfig, *split_words(words, ["--dry-run"]))
    if dry:
        print(dump(config) + building.dry_run(config))
        return
    outcome = building.build(config)
    if outcome.state == "already built":
        print(f"{config.output} is already built from this input and config: nothing to do")
        return
    if outcome.state == "waiting":
        print(f"task {config.task} of {config.tasks} is done; the task that finishes last writes the manifest")
        return
    _tell(outcome, config.output)


def join(words: list[str]) -> None:
    from sharding import join as joining

    given = [word for word in words if word != "--dry-run"]
    config = load(joining.JoinConfig, None, [word for word in given if "=" in word])
    config.parts += [word for word in given if "=" not in word]
    if "--dry-run" in words:
        print(joining.dry_run(config))
        return
    outcome = joining.join(config)
    if outcome.state == "already built":
        print(f"{config.output} is already joined from these parts: nothing to do")
        return
    _tell(outcome, config.output)


def _tell(outcome: Outcome, output: str) -> None:
    from sharding.progress import reasons_table

    print(reasons_table(outcome.kept, outcome.rejected, outcome.flags))
    for line in outcome.remarks:
        print(f"  {line}")
    print(
        f"{outcome.kept:,} windows of {outcome.patients:,} patients in {outcome.shards} shards at {output}, "
        f"{outcome.seconds:.1f} s"
    )


def status(words: list[str]) -> None:
    from sharding.progress import status as text

    print(text(Path(_folder("status", words))))


def verify(words: list[str]) -> None:
    from sharding.verify import verify as check

    manifest = check(Path(_folder("verify", words)))
    count = sum(s.samples for s in manifest.shards)
    print(f"{len(manifest.shards)} shards, {count:,} samples, fingerprint {manifest.fingerprint}: as in the manifest")


def report(words: list[str]) -> None:
    from sharding.report import report as write

    given = [w.removeprefix("input=") for w in words if w.startswith("input=")]
    folder = _folder("report", [w for w in words if not w.startswith("input=")])
    print(f"report: {write(Path(folder), Path(given[-1]) if given else None)}")


def _folder(name: str, words: list[str]) -> str:
    bare = [w.removeprefix("output=") for w in words]
    if len(bare) != 1:
        raise UserError(f"usage: python -m sharding {name} FOLDER")
    if os.path.exists(bare[0]) and not os.path.isdir(bare[0]):
        raise UserError(f"{bare[0]} is not a folder: name the output folder of a build")
    return bare[0]


if __name__ == "__main__":
    sys.argv[0] = "sharding"
    command(main)
