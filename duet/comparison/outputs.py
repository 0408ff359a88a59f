"""From the cells of a grid to what the report shows of them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from duet.comparison.grid import Cell
from duet.comparison.records import CellRecord, cell_files
from duet.comparison.scenes import differing_scenes
from duet.config import MethodSettings
from duet.documents import read_json
from duet.report.compared import ComparedRun, Kind
from duet.report.comparison import ComparedBlock, write_comparison


def compared_runs(cells: Sequence[Cell], records: Mapping[str, CellRecord], out: Path) -> list[ComparedRun]:
    """The cells as the report takes them.

    Args:
        cells: of the grid, in its order.
        records: how each stands, by name.
        out: the grid's folder.

    Raises:
        InputError: when the results of a finished run are damaged.
    """
    return [_compared(cell, records[cell.name], cell_files(out, cell.name).run) for cell in cells]


def write_outputs(
    cells: Sequence[Cell], records: Mapping[str, CellRecord], out: Path, name: str
) -> list[ComparedBlock]:
    """Write the tables and compare.html; arguments as for :func:`compared_runs`."""
    today = datetime.date.today().isoformat()
    runs = compared_runs(cells, records, out)
    return write_comparison(runs, out, name, differing_scenes(runs), today)


def kind_of(method: MethodSettings) -> Kind:
    """What a method is among others: a rival, or why it is none."""
    if method.joint:
        return "joint"
    if method.exemplars is not None:
        return "exemplars"
    return "committee" if method.committee else "method"


def _compared(cell: Cell, record: CellRecord, run: Path) -> ComparedRun:
    finished = record.status == "finished"
    return ComparedRun(
        series=cell.series,
        detector=cell.detector,
        label=cell.label,
        seed=cell.seed,
        status=record.status,
        folder=run,
        results=read_json(run / "results.json") if finished else None,
        error=record.error,
        log_tail=record.log_tail,
        kind=kind_of(cell.config.method),
    )
