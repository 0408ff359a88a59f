"""The one progress display of a grid: all cells, and each one that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from duet.comparison.grid import Cell
from duet.comparison.records import CellRecord
from duet.comparison.schedule import Display


class ConsoleDisplay(Display):
    """Bars with the time left in a terminal; a line per event elsewhere.

    Args:
        retry_failed: whether failed cells are run again.
        console: where to; the standard output by default.
    """

    def __init__(self, retry_failed: bool = False, console: Console | None = None) -> None:
        self.console, self.retry_failed = console or Console(), retry_failed
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._all: TaskID | None = None
        self._rows: dict[str, TaskID] = {}
        self._due, self._done = 0, 0

    def __enter__(self) -> ConsoleDisplay:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bars down."""
        self._bars.stop()

    def plan(self, cells: Sequence[Cell], records: Mapping[str, CellRecord]) -> None:
        """Say how many cells are done, failed and to do."""
        count = dict.fromkeys(("finished", "failed", "pending"), 0)
        for cell in cells:
            count[records[cell.name].status] += 1
        self._due = count["pending"] + (count["failed"] if self.retry_failed else 0)
        left = count["failed"] and not self.retry_failed
        self.console.print(
            f"{len(cells)} runs: {count['finished']} finished before, {self._due} to do"
            + (f", {count['failed']} failed before (--retry-failed runs them again)" if left else "")
        )
        self._all = self._bars.add_task("all runs", total=max(self._due, 1), count=f"0/{self._due}", text="")

    def started(self, cell: Cell) -> None:
        """Give the cell a bar."""
        self._rows[cell.name] = self._bars.add_task(escape(cell.name), total=None, count="", text="")
        if not self.console.is_terminal:
            self.console.print(f"started  {cell.name}", markup=False, soft_wrap=True)

    def ended(self, cell: Cell, record: CellRecord) -> None:
        """Take its bar away; say how it ended."""
        self._bars.remove_task(self._rows.pop(cell.name))
        self._done += 1
        said = f"{record.status:8} {cell.name}" + (f": {record.error}" if record.error else "")
        if record.error or not self.console.is_terminal:
            self.console.print(said, markup=False, soft_wrap=True)
        self._move(0.0)

    def progress(self, running: Mapping[str, Mapping[str, Any]]) -> None:
        """Move the bars."""
        parts = 0.0
        for name, values in running.items():
            steps, planned = values.get("steps", 0), values.get("planned", 0)
            parts += min(steps / planned, 1.0) if planned else 0.0
            if name in self._rows:
                title, done, total = (values.get(key, "") for key in ("title", "done", "total"))
                text = f"{title} {done}/{total}" if title else "starting"
                self._bars.update(
                    self._rows[name],
                    total=planned or None,
                    completed=steps,
                    count=f"{steps}/{planned}" if planned else "",
                    text=escape(text),
                )
        self._move(parts)

    def _move(self, parts: float) -> None:
        if self._all is not None:
            self._bars.update(
                self._all, completed=self._done + parts, count=f"{self._done}/{max(self._due, self._done)}"
            )
