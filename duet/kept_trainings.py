"""Trainings that are made once: each in a folder of its own, by key, by one process at a time.

A folder holds the trained detector and a record of its losses and duration. It takes its place when it is whole; what a
killed run left is replaced, and a damaged training is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from duet.detectors.base import Detector, StageOutcome
from duet.detectors.families import restore_detector, store_detector
from duet.documents import read_json
from duet.errors import InputError
from duet.monitor import Monitor
from duet.results import versions
from duet.state import write_json

_KEYED_VERSIONS = ("torch", "ultralytics")
_RECORD = "training.json"


@dataclass(frozen=True)
class Training:
    """A trained detector.

    Args:
        detector: the detector.
        outcome: its losses and the duration of its training, also when it was made before.
    """

    detector: Detector
    outcome: StageOutcome


@dataclass(frozen=True)
class KeptTrainings:
    """The trainings in one folder.

    Args:
        folder: of all of them.
        monitor: told of a wait for another run that makes the same one.
    """

    folder: Path
    monitor: Monitor

    def has(self, key: str) -> bool:
        """Whether the training was made before."""
        return (self._place(key) / _RECORD).is_file()

    def take(self, key: str, title: str, make: Callable[[Path], Training]) -> Training:
        """The training of the key, made now if it is not there.

        Args:
            key: digest of everything that decides its numbers.
            title: what it is, for the monitor.
            make: trains; gets a folder to work in, whose ``data`` and ``train/weights`` are not kept.
        """
        place = self._place(key)
        with self._only_one(place, title):
            return _kept(place) or self._made(place, make)

    @contextmanager
    def _only_one(self, place: Path, title: str) -> Iterator[None]:
        """Hold the training's lock: of several runs that need it, one makes it and the others wait for it."""
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.with_name(f".{place.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.monitor.begin(f"wait for another run: {title}", 1)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _made(self, place: Path, make: Callable[[Path], Training]) -> Training:
        folder = place.with_name(f".{place.name}.part")  # what a killed run left in it is replaced
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        training = make(folder)
        store_detector(training.detector, folder / "model.safetensors")
        shutil.rmtree(folder / "data", ignore_errors=True)
        shutil.rmtree(folder / "train" / "weights", ignore_errors=True)
        losses = [dict(epoch) for epoch in training.outcome.losses]
        write_json(folder / _RECORD, {"losses": losses, "seconds": training.outcome.seconds})
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        folder.rename(place)
        return training

    def _place(self, key: str) -> Path:
        return self.folder / key[:16]


def keyed_versions() -> dict[str, str]:
    """Versions of the packages that decide a training's numbers."""
    found = versions()
    return {name: found[name] for name in _KEYED_VERSIONS}


def _kept(folder: Path) -> Training | None:
    """A training that was made before; None when there is none or it is damaged."""
    try:
        record = read_json(folder / _RECORD)
        outcome = StageOutcome(tuple(record["losses"]), record["seconds"])
        return Training(restore_detector(folder / "model.safetensors"), outcome)
    except (InputError, KeyError, TypeError):
        return None
