"""What a run tells while it works: progress bars with the time left, tables at the end of each stage."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from duet.detectors.base import StageProgress


class Monitor(AbstractContextManager):
    """A silent monitor; the learner's default and the base of the others."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to close."""

    def plan(self, steps: int) -> None:
        """How many training steps the whole run has."""

    def begin(self, title: str, total: int) -> None:
        """A part of the run with its own bar begins."""

    def advance(self, done: int, text: str = "") -> None:
        """``done`` of the current part's total is done."""

    def train_step(self, progress: StageProgress) -> None:
        """A training step is done."""

    def show(self, renderable: Any) -> None:
        """Show a table or a line above the bars."""


class ConsoleMonitor(Monitor):
    """Two bars with rich, the run's and the current part's; a line per epoch when the output is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        if not self.console.is_terminal and console is None:
            self.console = Console(width=120)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._run: TaskID | None = None
        self._part: TaskID | None = None
        self._title = ""
        self._last_epoch = 0
        self._last_step = 0
        self.steps_done = 0

    def __enter__(self) -> ConsoleMonitor:
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take the bars down."""
        self._bars.stop()

    def plan(self, steps: int) -> None:
        """Show the run's bar."""
        self._run = self._bars.add_task("run, training steps", total=steps, text="")

    def begin(self, title: str, total: int) -> None:
        """Replace the part's bar."""
        if self._part is not None:
            self._bars.remove_task(self._part)
        self._title, self._last_epoch, self._last_step = title, 0, 0
        self._part = self._bars.add_task(title, total=total, text="")
        if not self.console.is_terminal:
            self.console.print(title)

    def advance(self, done: int, text: str = "") -> None:
        """Move the part's bar."""
        if self._part is not None:
            self._bars.update(self._part, completed=done, text=text)

    def train_step(self, progress: StageProgress) -> None:
        """Move both bars and show the losses by name."""
        self._count(progress)
        losses = "  ".join(f"{_short(name)} {value:.4g}" for name, value in progress.losses.items())
        if self._part is not None:
            self._bars.update(self._part, total=progress.steps)
        self.advance(progress.step, f"epoch {progress.epoch}/{progress.epochs}  {losses}")
        if self._run is not None:
            self._bars.update(self._run, completed=self.steps_done)
        finished = progress.step * progress.epochs == progress.epoch * progress.steps
        if not self.console.is_terminal and finished and progress.epoch > self._last_epoch:
            self._last_epoch = progress.epoch
            self.console.print(f"{self._title}: epoch {progress.epoch}/{progress.epochs}  {losses}", soft_wrap=True)

    def _count(self, progress: StageProgress) -> None:
        if progress.step <= self._last_step:  # another training in the same part: the calibration
            self._last_step = self._last_epoch = 0
        self.steps_done += progress.step - self._last_step
        self._last_step = progress.step

    def show(self, renderable: Any) -> None:
        """Print above the bars."""
        self.console.print(renderable)


def _short(name: str) -> str:
    return name.removesuffix("_loss")
