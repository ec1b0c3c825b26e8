"""Checks that config and input still match the plan of an output, and reports what has changed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import pyarrow.compute as pc

from sharding import headers
from sharding.headers import Survey
from sharding.metadata import table_path
from sharding.options import BuildConfig, content
from sharding.plan import Plan, row_file, table_stamp
from umbra import resume
from umbra.errors import UserError


def refuse_other_config(output: Path, plan: Plan, config: BuildConfig, key_id: str) -> None:
    """Raises `UserError`, naming the key that differs, if `config` does not match the plan."""
    known = resume.flat(content(BuildConfig(), ""))  # keys added since the plan was made have their defaults
    for change in resume.changes("build", known | resume.flat(plan.content), resume.flat(content(config, key_id))):
        old, new = (None if value is resume.UNSET else value for value in (change.old, change.new))
        if old != new:
            raise UserError(f"{output} was planned with {change.key}={old}, now {change.key}={new}: {_way_out(output)}")


def refuse_other_table(output: Path, plan: Plan, config: BuildConfig) -> None:
    """Raises `UserError` if the table's size or modification time does not match the plan."""
    found = table_path(Path(config.input), config.source.table)
    if table_stamp(found) != plan.table:
        raise UserError(f"{output} was planned from different input ({found} has changed): {_way_out(output)}")


def refuse_other_records(output: Path, known: Survey) -> None:
    """Raises `UserError`, naming a record, if the records in a folder without a table do not match the plan."""
    if known.table is None and (difference := _found_difference(output, known)):
        raise UserError(f"{output} was planned from different input ({difference}): {_way_out(output)}")


def refuse_other_files(output: Path, config: BuildConfig, pool: Executor | None, tick: Callable[[int], object]) -> None:
    """Raises `UserError`, naming a record, if one of its files has changed since planning."""
    groups = iter(range(len(row_file(output).groups)))
    for records, change in headers.in_order(partial(_changed_group, output, Path(config.input)), groups, pool):
        if change:
            raise UserError(f"{output} was planned from different input ({change}): {_way_out(output)}")
        tick(records)


def _found_difference(output: Path, known: Survey) -> str:
    planned = row_file(output).read(["record"]).column("record")
    for what, here, there in (("new", known.records, planned), ("gone", planned, known.records)):
        if len(only := here.filter(pc.invert(pc.is_in(here, there)))):
            return f"record {only[0].as_py()} is {what}"
    return ""


def _changed_group(output: Path, root: Path, group: int) -> tuple[int, str]:
    rows = row_file(output).group(group, ["record", "files", "bytes", "stamp"])
    return len(rows), headers.changed(root, rows)


def _way_out(output: Path) -> str:
    return f"choose another output or delete {output}"
