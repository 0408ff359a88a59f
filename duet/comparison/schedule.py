"""Run the cells of a grid: finished ones are skipped, failed ones reported, the others share the engine's slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duet.comparison.engines import Engine
from duet.comparison.grid import Cell, cells_that_train_alike
from duet.comparison.records import (
    TRAININGS,
    CellRecord,
    cell_files,
    log_tail,
    read_progress,
    read_record,
    write_record,
)
from duet.comparison.worker import STOPPED, Job

SECONDS_BETWEEN = 0.5


class Display(AbstractContextManager):
    """What is shown while a grid runs; this one shows nothing."""

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    def plan(self, cells: Sequence[Cell], records: Mapping[str, CellRecord]) -> None:
        """What is to do."""

    def started(self, cell: Cell) -> None:
        """A cell has begun."""

    def ended(self, cell: Cell, record: CellRecord) -> None:
        """A cell has ended."""

    def progress(self, running: Mapping[str, Mapping[str, Any]]) -> None:
        """How far the running cells are, by name; the worker's values."""


@dataclass
class Queue:
    """Cells that wait, in order, and the shared trainings that running cells may be making.

    A cell that needs a training which a running one is making would wait for it, so another is taken first.
    """

    waiting: list[Cell]
    made: set[str] = field(default_factory=set)

    def take(self, running: Iterable[Cell]) -> Cell:
        """The next cell to start; of those that wait, the first that would not have to wait for a running one."""
        making = {name for cell in running for name in cell.shared} - self.made
        free = next((cell for cell in self.waiting if making.isdisjoint(cell.shared)), self.waiting[0])
        self.waiting.remove(free)
        return free

    def ended(self, cell: Cell) -> None:
        """What it shares is there now."""
        self.made |= cell.shared


def read_records(cells: Sequence[Cell], out: Path) -> dict[str, CellRecord]:
    """How each cell stands, by name.

    Raises:
        InputError: when one was finished with another configuration.
    """
    return {cell.name: read_record(out, cell) for cell in cells}


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    engine: Engine,
    display: Display,
    environments: Sequence[Mapping[str, str]] = ({},),
    retry_failed: bool = False,
) -> dict[str, CellRecord]:
    """Run what is not finished.

    Args:
        cells: the grid's cells.
        out: the grid's folder.
        engine: where they run; it is stopped at the end, also after an error.
        display: what is shown.
        environments: variables of the processes of each slot, one mapping per slot or one for all.
        retry_failed: run failed cells again.

    Returns:
        How each cell ended, by name.

    Raises:
        InputError: when a finished cell was run with another configuration; nothing is started then.
    """
    records = read_records(cells, out)
    due = {"pending", "failed"} if retry_failed else {"pending"}
    queue = Queue([cell for cell in cells if records[cell.name].status in due])
    for cell in cells:
        if records[cell.name].status == "finished":
            queue.ended(cell)
    running: dict[Any, tuple[Cell, int]] = {}
    free = list(range(engine.slots))
    alike = cells_that_train_alike(cells)
    display.plan(cells, records)
    try:
        while queue.waiting or running:
            while queue.waiting and free:
                cell, slot = queue.take(item for item, _ in running.values()), free.pop(0)
                trainings = out / TRAININGS if cell.name in alike else None
                job = _job(cell, out, environments[slot % len(environments)], trainings)
                running[engine.start(job)] = (cell, slot)
                display.started(cell)
            for handle, code in engine.ended(list(running), SECONDS_BETWEEN):
                cell, slot = running.pop(handle)
                free.append(slot)
                records[cell.name] = _ended(cell, out, code)
                queue.ended(cell)
                display.ended(cell, records[cell.name])
            now = [cell for cell, _ in running.values()]
            display.progress({cell.name: read_progress(cell_files(out, cell.name).progress) for cell in now})
    finally:
        engine.stop()
    return records


def _job(cell: Cell, out: Path, environment: Mapping[str, str], trainings: Path | None) -> Job:
    """What a worker needs, with nothing left of an earlier start."""
    files = cell_files(out.resolve(), cell.name)
    files.record.unlink(missing_ok=True)
    files.progress.unlink(missing_ok=True)
    threads = cell.config.train.threads
    variables = {"OMP_NUM_THREADS": str(threads), **environment} if threads else dict(environment)
    return Job(
        cell.name,
        cell.config.model_dump(mode="json"),
        *map(str, (files.run, files.record, files.log, files.progress)),
        variables,
        None if trainings is None else str(trainings.resolve()),
    )


def _ended(cell: Cell, out: Path, code: int) -> CellRecord:
    """How a cell ended; a worker that died without a word leaves its exit code and its last lines."""
    record = read_record(out, cell)
    if record.status != "pending":
        return record
    files = cell_files(out, cell.name)
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code == STOPPED:
        how = "was stopped"
    during = read_progress(files.progress).get("title")
    error = f"the process {how}{f' during {during!r}' if during else ''}; its log is {files.log}"
    write_record(files.record, cell.config, "failed", error, files.log)
    return CellRecord("failed", error, log_tail(files.log))
