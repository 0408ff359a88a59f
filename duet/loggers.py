"""Experiment loggers of a run: one experiment per run, one step axis that goes on over its stages.

A step is an epoch, counted from 1 over the whole run. Each epoch's mean losses and learning rates are logged when it
ends; the slices' mAP and the indices at the last step of their stage. ``loggers.json`` in the run folder keeps what was
logged, so that a run that was killed goes on in the same experiment and repeats nothing.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from duet.config import RunConfig
from duet.detectors.base import StageProgress
from duet.documents import read_json
from duet.errors import InputError
from duet.evaluation.indices import METRICS
from duet.log_targets import TARGETS, LogTarget, RunNotes, open_target, plain_name
from duet.monitor import Monitor
from duet.state import write_json

RECORD = "loggers.json"
NOT_LOGGED = ("tasks",)  # a count, no result

_log = logging.getLogger(__name__)


@dataclass
class _Logged:
    """What a target has: epochs of the whole run, and stages with their scores."""

    identity: str | None = None
    epochs: int = 0
    stages: int = 0


@dataclass
class RunLoggers(AbstractContextManager):
    """The loggers of one run; nothing is opened before there is something to log.

    Args:
        config: of the run; ``loggers``, and what the step axis is made of, are read.
        folder: the run folder.
        fingerprint: of the run; what another run logged from this folder is not gone on with.

    Raises:
        InputError: when the package of a logger is not installed.
    """

    config: RunConfig
    folder: Path
    fingerprint: str
    _targets: dict[str, LogTarget] | None = None
    _logged: dict[str, _Logged] = field(default_factory=dict)
    _stage: int = 0
    _epochs: int = 0

    def __post_init__(self) -> None:
        for name in self.config.loggers:
            if importlib.util.find_spec(TARGETS[name].package) is None:
                raise InputError(
                    f"loggers: '{name}' needs a package that is not installed: pip install {TARGETS[name].install}"
                )
        self._logged = {name: _Logged() for name in self.config.loggers} | self._read()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close what was opened."""
        for name, target in (self._targets or {}).items():
            try:
                target.close(kind is None)
            except Exception as failure:
                _log.warning("logger '%s' could not be closed: %s", name, failure)
        self._targets = None

    def is_behind(self, stages: int) -> bool:
        """Whether a logger lacks one of the finished stages."""
        return any(self._logged[name].stages < stages for name in self.config.loggers)

    def begin(self, stage: int) -> None:
        """The training steps that follow belong to this stage, counted from 1."""
        self._stage, self._epochs = stage, 0

    def train_step(self, progress: StageProgress) -> None:
        """Log an epoch of the current stage when this was its last step."""
        if (
            not (self._stage and self.config.loggers)
            or progress.step * progress.epochs != progress.epoch * progress.steps
        ):
            return
        self._epochs += 1
        prefix = "calibration_" if self._epochs > self.config.train.epochs else ""
        losses = {f"{prefix}{name}": value for name, value in progress.losses.items()}
        self._epoch(self._stage, self._epochs, losses, progress.learning_rates)

    def finish(self, stage: int, document: Mapping[str, Any]) -> None:
        """Log a finished stage: epochs that no step told of (they came from a cache), then its scores.

        Args:
            stage: its number, from 1.
            document: content of results.json after this stage.
        """
        self._stage = 0
        if not self.config.loggers:
            return
        entry = document["stages"][stage - 1]
        for number, losses in enumerate(entry["losses"], start=1):
            self._epoch(stage, number, losses, {})
        values = scores_of(document, stage)
        step = self._first_step(stage) + len(entry["losses"])
        behind = [name for name in self._opened() if self._logged[name].stages < stage]
        for name in behind:
            if self._send(name, values, step):
                self._logged[name].stages = stage
        self._write()

    def _epoch(self, stage: int, number: int, losses: Mapping[str, float], rates: Mapping[str, float]) -> None:
        step = self._first_step(stage) + number
        values = {f"train/{plain_name(name)}": value for name, value in losses.items()}
        values.update(rates)
        values["stage"] = stage
        behind = [name for name in self._opened() if self._logged[name].epochs < step]
        for name in behind:
            if self._send(name, values, step):
                self._logged[name].epochs = step
        if behind:
            self._write()

    def _first_step(self, stage: int) -> int:
        """Epochs before a stage."""
        method = self.config.method
        calibrated = 0 if method.joint or method.start == "pretrained" else max(stage - 2, 0)
        return (stage - 1) * self.config.train.epochs + calibrated * method.calibration_epochs

    def _opened(self) -> dict[str, LogTarget]:
        if self._targets is None:
            self._targets = {}
            settings = self.config.settings()
            notes = RunNotes(self.folder, Path(self.config.series).stem, self.folder.resolve().name, settings)
            for name in self.config.loggers:
                done = self._logged[name]
                self._targets[name] = open_target(name, notes, done.identity, done.epochs + 1)
                done.identity = self._targets[name].identity
            self._write()
        return self._targets

    def _send(self, name: str, values: Mapping[str, float], step: int) -> bool:
        try:
            self._targets[name].log(values, step)
        except Exception as error:  # hours of training do not end because a logging server did
            _log.warning("logger '%s' failed and is off until the run is started again: %s", name, error)
            del self._targets[name]
            return False
        return True

    def _read(self) -> dict[str, _Logged]:
        """What earlier processes logged of this run; nothing when the record is another run's or damaged."""
        try:
            record = read_json(self.folder / RECORD)
            if record["fingerprint"] != self.fingerprint:
                return {}
            return {name: _Logged(**values) for name, values in record["targets"].items() if name in TARGETS}
        except (InputError, KeyError, TypeError, AttributeError):
            return {}

    def _write(self) -> None:
        targets = {name: vars(done) for name, done in self._logged.items()}
        write_json(self.folder / RECORD, {"fingerprint": self.fingerprint, "targets": targets})


class LoggedMonitor(Monitor):
    """A monitor whose training steps reach the loggers too.

    Args:
        monitor: what shows the run.
        loggers: of the run.
    """

    def __init__(self, monitor: Monitor, loggers: RunLoggers) -> None:
        self.monitor, self.loggers = monitor, loggers

    def plan(self, steps: int) -> None:
        """Pass on."""
        self.monitor.plan(steps)

    def begin(self, title: str, total: int) -> None:
        """Pass on."""
        self.monitor.begin(title, total)

    def advance(self, done: int, text: str = "") -> None:
        """Pass on."""
        self.monitor.advance(done, text)

    def train_step(self, progress: StageProgress) -> None:
        """Show and log."""
        self.monitor.train_step(progress)
        self.loggers.train_step(progress)

    def show(self, renderable: Any) -> None:
        """Pass on."""
        self.monitor.show(renderable)


def scores_of(document: Mapping[str, Any], stage: int) -> dict[str, float]:
    """Scores after a stage by name; what has no value is left out.

    ``map50/old/night_4-6`` is the slice night[4:6], classes numbered in order of learning as in Table S1, in the role
    that it has after this stage (``grid`` in a joint run, which has no roles); ``map50/rai`` an index.

    Args:
        document: content of results.json after this stage.
        stage: its number, from 1.
    """
    entry, classes = document["stages"][stage - 1], document["series"]["classes"]
    rows = entry["slices"] or [{"role": "grid", **cell} for cell in entry["grid"]]
    values: dict[str, Any] = {}
    for metric in METRICS:
        for row in rows:
            label = f"{row['domain']}_{_positions(row['classes'], classes)}"
            values[f"{metric}/{row['role']}/{label}"] = row[metric]
        indices = document["indices"][metric]
        values.update({f"{metric}/{name}": value for name, value in indices.items() if name not in NOT_LOGGED})
    values["merge/sign_conflict_rate"] = (entry["merge"] or {}).get("sign_conflict_rate")
    values.update({f"seconds/{name}": value for name, value in entry["timing"].items()})
    return {plain_name(name): float(value) for name, value in values.items() if type(value) in (int, float)}


def _positions(names: Sequence[str], classes: Sequence[str]) -> str:
    numbers = [classes.index(name) + 1 for name in names]
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return "_".join(map(str, numbers))
