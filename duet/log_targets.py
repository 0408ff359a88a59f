"""Where an experiment is logged: TensorBoard, MLflow, Weights & Biases, behind one small protocol.

Ultralytics has a callback module for each of the three. They begin a new run with every trainer and a new step axis
with every stage, and know of no score that is not their validator's; so a stage hands its values to these targets
instead, under the names that Ultralytics' modules use (``train/box_loss``, ``lr/pg0``).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from duet.config import flat
from duet.errors import InputError, first_line

MLFLOW_VALUE = 6000  # characters of a parameter, as MLflow's stores allow


@dataclass(frozen=True)
class RunNotes:
    """What a target is told about the run.

    Args:
        folder: the run folder.
        experiment: what runs that are compared with each other have in common: the series.
        name: of this run.
        settings: the resolved configuration as plain values.
    """

    folder: Path
    experiment: str
    name: str
    settings: Mapping[str, Any]


class LogTarget(Protocol):
    """One experiment logger during one process.

    Attributes:
        identity: what the next process needs to go on in the same experiment.
    """

    identity: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write values by name at a step; they are safe when this returns, as far as the logger promises it."""

    def close(self, succeeded: bool) -> None:
        """The process is done with the run, or the run has failed."""


class TensorBoard:
    """Event files in the run folder, under ``tensorboard``.

    Args:
        notes: about the run.
        identity: of an earlier process, or None.
        next_step: events of this step and later ones that an earlier process wrote do not count any more.
    """

    def __init__(self, notes: RunNotes, identity: str | None, next_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.identity = "tensorboard"
        folder = notes.folder / self.identity
        if identity is None:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was started over
        self._writer = SummaryWriter(str(folder), purge_step=None if identity is None else next_step)
        if identity is None:
            text = yaml.safe_dump(dict(notes.settings), sort_keys=False, allow_unicode=True)
            self._writer.add_text("settings", f"```yaml\n{text}```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, succeeded: bool) -> None:
        """Close the event file."""
        self._writer.close()


class Mlflow:
    """A run in the store that ``MLFLOW_TRACKING_URI`` names, else in MLflow's own default store.

    Where the small package is installed, which has no database, the default is the folder ``mlruns``.

    The experiment is ``MLFLOW_EXPERIMENT_NAME`` or named after the series. The run is written through a client, so that
    an active run of the caller's is not touched.
    """

    def __init__(self, notes: RunNotes, identity: str | None, next_step: int) -> None:
        from mlflow.tracking import MlflowClient

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses file: stores without it
        self._client = MlflowClient(_default_store())
        if identity is None:
            identity = self._begin(notes)
        else:
            self._client.update_run(identity, status="RUNNING")
        self.identity = identity

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One metric per value."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.identity, [Metric(name, value, now, step) for name, value in values.items()])

    def close(self, succeeded: bool) -> None:
        """Mark the run as finished or failed; a later process marks it as running again."""
        self._client.set_terminated(self.identity, "FINISHED" if succeeded else "FAILED")

    def _begin(self, notes: RunNotes) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"duet-{notes.experiment}"
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = self._client.create_run(experiment, run_name=notes.name)
        for key, value in flat(notes.settings).items():
            if not isinstance(value, Mapping):  # an empty one
                self._client.log_param(run.info.run_id, key, str(value)[:MLFLOW_VALUE])
        return run.info.run_id


class WeightsAndBiases:
    """A run of Weights & Biases; ``WANDB_MODE``, ``WANDB_PROJECT`` and its other variables apply.

    The project is ``duet`` otherwise; files of a run in offline mode stand in the run folder under ``wandb``.
    """

    def __init__(self, notes: RunNotes, identity: str | None, next_step: int) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "duet",
            group=notes.experiment,
            name=notes.name,
            config=dict(notes.settings),
            dir=str(notes.folder),
            id=identity,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        self.identity = self._run.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One row per step; values of an earlier step than the last are dropped by the logger."""
        self._run.log(dict(values), step=step)

    def close(self, succeeded: bool) -> None:
        """Wait until everything is written or sent."""
        self._run.finish(exit_code=0 if succeeded else 1)


@dataclass(frozen=True)
class TargetKind:
    """One logger that a configuration can name.

    Args:
        package: what is imported.
        install: what pip installs.
        open: (notes, identity or None, next step) → the target.
    """

    package: str
    install: str
    open: Callable[[RunNotes, str | None, int], LogTarget]


TARGETS = {
    "tensorboard": TargetKind("tensorboard", "tensorboard", TensorBoard),
    "mlflow": TargetKind("mlflow", "mlflow-skinny", Mlflow),
    "wandb": TargetKind("wandb", "wandb", WeightsAndBiases),
}


def open_target(name: str, notes: RunNotes, identity: str | None, next_step: int) -> LogTarget:
    """Begin an experiment, or go on in it.

    Args:
        name: key of ``TARGETS``.
        notes: about the run.
        identity: of the target of an earlier process, or None.
        next_step: the first step that is still to be logged.

    Raises:
        InputError: when the logger cannot be opened: no server, no login, a deleted run.
    """
    try:
        return TARGETS[name].open(notes, identity, next_step)
    except Exception as error:  # each package has its own kinds
        raise InputError(f"logger '{name}' cannot be opened: {first_line(error)}") from error


def plain_name(name: str) -> str:
    """A name that every logger accepts: letters, digits, and ``_ - . /``."""
    return re.sub(r"[^\w\-./]", "_", name, flags=re.ASCII)


def _default_store() -> str | None:
    """None leaves the choice to MLflow."""
    if os.environ.get("MLFLOW_TRACKING_URI") or importlib.util.find_spec("sqlalchemy"):
        return None
    return Path("mlruns").resolve().as_uri()
