"""``duet compare``: a grid of runs in parallel, then one table and one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from duet.errors import InputError


def compare(
    grid: Annotated[str, typer.Argument(help="Name of a shipped grid (demo, ablation, mergers), or a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison; runs/compare-NAME by default.")] = None,
    series: Annotated[list[str] | None, typer.Option(help="In place of the grid's series; may be repeated.")] = None,
    detector: Annotated[list[str] | None, typer.Option(help="In place of its detectors; may be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods (labels); may be repeated.")] = None,
    merger: Annotated[
        list[str] | None, typer.Option(help="Run every merging method with these mergers; `own` is its own.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="In place of its seeds; may be repeated.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that the series' relative paths start from.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For every run: keys of train and evaluation, and loggers."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default what the cores or devices allow.")
    ] = None,
    devices: Annotated[str | None, typer.Option(help="Graphics cards to share, such as 0,1; else CPUs.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray (needs the extra `ray`).")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; else one on this machine.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and how they stand; run nothing.")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write tables and page from what is finished; run nothing.")
    ] = False,
) -> None:
    """Run methods × seeds × detectors × series side by side and compare them.

    Finished runs are skipped and failed ones reported, so that the same command goes on after it was stopped or killed.
    It ends in a table (table.csv, table.md, table.tex) and compare.html. The exit code is 1 when a run failed.
    """
    from duet.comparison.grid import cells_of, read_grid
    from duet.comparison.schedule import read_records
    from duet.config import parse_assignments
    from duet.processes import usable_cores

    changes = {"series": series, "detectors": detector, "mergers": merger, "seeds": seed}
    given: dict[str, Any] = {key: value for key, value in changes.items() if value}
    given |= {"root": str(root)} if root is not None else {}
    chosen = read_grid(grid, {**given, **_for_every_run(parse_assignments(set_ or []))})
    cards = _cards(devices)
    cells = cells_of(chosen, "0" if cards else None)
    if method:
        unknown = [name for name in method if name not in {cell.label for cell in cells}]
        if unknown:
            raise InputError(f"--method {unknown[0]}: the grid has {', '.join(dict.fromkeys(c.label for c in cells))}")
        cells = [cell for cell in cells if cell.label in method]
    if not report_only:
        _refuse_absent_data(cells)
    folder = out or Path("runs") / f"compare-{chosen.name}"
    records = read_records(cells, folder)  # a changed configuration is refused before an engine is started
    if dry_run:
        return _show_cells(cells, records)
    if not report_only:
        slots = workers or len(cards) or usable_cores() // (cells[0].config.train.threads or usable_cores())
        settings = {"slots": workers if engine == "ray" else max(1, slots), "address": address}
        records = _run(cells, folder, engine, settings, cards, retry_failed)
    _finish(cells, records, folder, chosen.name)


def _refuse_absent_data(cells: list) -> None:
    """Before anything starts: one sentence, not one in every cell."""
    from duet.datasets.series_file import find_series

    for series, root in dict.fromkeys((cell.config.series, cell.config.root) for cell in cells):
        source = find_series(series, Path(root) if root else None)
        source.refuse_without_root()
        for name in source.section.domains:
            files = source.domain(name)
            for part in (*files.train, *files.test):
                place = part.listed or part.images
                if not place.exists():
                    raise InputError(f"{place}: no such {'file' if part.listed else 'folder'} (domain '{name}')")


def _run(cells: list, folder: Path, engine: str, settings: dict, cards: list[str], retry_failed: bool) -> dict:
    from duet.comparison.display import ConsoleDisplay
    from duet.comparison.engines import make_engine, refuse_unknown_engine
    from duet.comparison.schedule import run_cells
    from duet.state import only_user

    refuse_unknown_engine(engine)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    settings |= {"cpus": cells[0].config.train.threads or 1, "gpus": 1 if cards else 0}
    environments = [{"CUDA_VISIBLE_DEVICES": card} for card in cards] if cards and engine == "local" else [{}]
    try:
        with only_user(folder), ConsoleDisplay(retry_failed) as display:
            return run_cells(cells, folder, make_engine(engine, settings), display, environments, retry_failed)
    except KeyboardInterrupt:
        Console(stderr=True).print("Error: stopped; the same command goes on where it stood")
        raise SystemExit(130) from None


def _finish(cells: list, records: dict, folder: Path, name: str) -> None:
    from duet.comparison.outputs import write_outputs
    from duet.report.comparison import comparison_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(comparison_table(write_outputs(cells, records, folder, name)))
    console.print(f"Page: {folder / 'compare.html'}   Tables: {folder}/table.csv .md .tex", soft_wrap=True)
    if any(record.status == "failed" for record in records.values()):
        raise SystemExit(1)


def _show_cells(cells: list, records: dict) -> None:
    table = Table(Column("Run", overflow="fold"), "Stands", Column("Error", overflow="fold"))
    for cell in cells:
        record = records[cell.name]
        table.add_row(cell.name, record.status, record.error)
    Console().print(table)


def _for_every_run(assignments: dict[str, Any]) -> dict[str, Any]:
    """The ``--set`` values as keys of a grid."""
    other = [key for key in assignments if key not in ("train", "evaluation", "loggers")]
    if other:
        raise InputError(
            f"--set {other[0]}: a comparison sets keys of train and evaluation, and loggers; methods stand in its file"
        )
    return assignments


def _cards(devices: str | None) -> list[str]:
    if devices is None or devices == "cpu":
        return []
    cards = [part.strip() for part in devices.split(",")]
    if not all(card.isdigit() for card in cards) or len(set(cards)) < len(cards):
        raise InputError(f"--devices {devices}: expected numbers of graphics cards such as 0,1, or cpu")
    return cards
