"""What is deployed, and what the next update of it needs: four files that a run or an update leaves.

``detector.pt`` is the family's own checkpoint. ``detector.safetensors`` holds the same tensors, those of the model
before them (for the direction of the last update) and, in its header, the record: classes, tasks, settings, six colour
numbers per domain. ``detector.json`` is the record to read, with the hashes of the files. ``MODEL_CARD.md`` says it in
words. No image, label or feature of a training set is in any of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from duet.config import MethodSettings, RunConfig, Section, TrainSettings, validate
from duet.detectors.archives import archive_is_whole
from duet.detectors.base import Detector, DomainStatistics
from duet.detectors.families import load_pretrained, read_stored, restore_detector, store_detector
from duet.disk import DiskError
from duet.documents import read_json
from duet.errors import InputError
from duet.report.model_card import model_card
from duet.results import versions
from duet.series import Series
from duet.state import sha256_of, sync_folder, write_atomic, write_json, write_text

RECORD_KEY = "duet_record"
BESIDE = ("before", "base")  # what is stored beside the detector's own tensors
HASHED = ("detector.pt", "detector.safetensors")
CARD = "MODEL_CARD.md"  # text that people may add to: it is written, and never checked

Colour = tuple[float, float, float]


class TaskRecord(Section):
    """One task that the detector has learned."""

    domain: str
    classes: tuple[str, ...]
    images: int | None = None
    boxes: int | None = None
    mean: Annotated[Colour | None, Field(description="of red, green and blue over the training pixels")] = None
    std: Colour | None = None

    @property
    def statistics(self) -> DomainStatistics | None:
        """The domain's colours, or None when nobody measured them."""
        return None if self.mean is None or self.std is None else DomainStatistics(self.mean, self.std)


class Start(Section):
    """The pretrained weights θ_0."""

    name: str
    digest: str


class Record(Section):
    """What a deployed detector says of itself."""

    format: Literal["duet-artefact-1"] = "duet-artefact-1"
    family: str
    classes: tuple[str, ...]
    image_size: int | None
    tasks: tuple[TaskRecord, ...]
    start: Start
    seed: int
    method: MethodSettings
    train: TrainSettings
    versions: dict[str, str]
    scores: Annotated[
        list[dict[str, Any]], Field(default_factory=list, description="mAP by domain and classes, where measured")
    ]


@dataclass(frozen=True)
class Artefact:
    """A deployed detector with its record.

    Args:
        detector: the detector.
        record: what it says of itself; None for a plain checkpoint.
        before: θ_s of the model before its last task; empty when that was the first.
        base: θ_0, where no pretrained weights of a name hold it; else empty.
    """

    detector: Detector
    record: Record | None
    before: Mapping[str, Tensor] = field(default_factory=dict)
    base: Mapping[str, Tensor] = field(default_factory=dict)


def record_of_run(
    config: RunConfig, series: Series, metrics: Sequence[Mapping[str, Any]], detector: Detector, start_digest: str
) -> Record:
    """The record of a run after its last finished stage.

    Args:
        config: of the run.
        series: its tasks.
        metrics: the content of each finished stage's metrics.json.
        detector: the detector of the last one.
        start_digest: digest of the pretrained weights.
    """
    joint = config.method.joint
    tasks = [
        TaskRecord(domain=task.domain, classes=task.classes, **({} if joint else _training(values)))
        for task, values in zip(series.tasks, [*metrics] * len(series) if joint else metrics)
    ]
    return Record(
        family=detector.describe().family,
        classes=detector.classes,
        image_size=detector.image_size,
        tasks=tuple(tasks),
        start=Start(name=config.detector, digest=start_digest),
        seed=config.seed,
        method=config.method,
        train=config.train,
        versions=versions(),
        scores=[dict(item) for item in metrics[-1]["stage"]["slices"]],
    )


def _training(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {**metrics["training"], **metrics["statistics"]}


def write_artefact(folder: Path, artefact: Artefact) -> None:
    """Write the four files, then put them in their places; ``detector.json`` is the last: its hashes tell a mixture.

    Raises:
        OSError: when a file cannot be written; all that stood there before stays.
    """
    part = folder / f".artefact.{os.getpid()}.part"
    try:
        _write_files(part, artefact)
        for name in (*HASHED, CARD, "detector.json"):
            os.replace(part / name, folder / name)
    except DiskError as error:
        raise DiskError(str(error).replace(str(part), str(folder)), error.errno) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(folder)


def _write_files(folder: Path, artefact: Artefact) -> None:
    record, detector = artefact.record, artefact.detector
    plain = record.model_dump(mode="json")
    extra = {RECORD_KEY: json.dumps(plain, ensure_ascii=False, allow_nan=False)}
    beside = {f"{name}.{key}": value for name in BESIDE for key, value in getattr(artefact, name).items()}
    store_detector(detector, folder / "detector.safetensors", beside, extra)
    write_atomic(folder / "detector.pt", detector.save_checkpoint, archive_is_whole)
    write_text(folder / CARD, model_card(plain))
    hashes = {name: sha256_of(folder / name) for name in HASHED}
    write_json(folder / "detector.json", {**plain, "sha256": hashes})


def artefact_is_whole(folder: Path) -> bool:
    """Whether the four files are there and belong together."""
    try:
        _listed(folder)
        return (folder / CARD).is_file()
    except (InputError, OSError):
        return False


def open_artefact(path: Path, trust: bool = False) -> Artefact:
    """Open a deployed detector for its next update.

    Args:
        path: a folder with ``detector.safetensors``, that file, ``detector.pt`` beside it, any plain checkpoint, or the
            name of pretrained weights.
        trust: open a checkpoint that could run code.

    Raises:
        InputError: when a file is missing, damaged, or is not what its record says.
    """
    path, listed = _tensors_of(path)
    if path.suffix != ".safetensors":
        return Artefact(load_pretrained(str(path), trust), None)
    stored = read_stored(path)
    if RECORD_KEY not in stored.header:
        return Artefact(restore_detector(path), None)
    try:
        values = json.loads(stored.header[RECORD_KEY])
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: damaged, its record is not JSON") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged, its record is no mapping")
    record = validate(Record, values, f"{path}, record")
    if listed is not None and listed != values:
        raise InputError(f"{path.with_name('detector.json')}: was changed, its record is not that of {path.name}")
    detector = restore_detector(path)
    if detector.classes != record.classes:
        raise InputError(f"{path}: damaged, its record and its tensors name different classes")
    return Artefact(detector, record, *(_named(stored.beside, name) for name in BESIDE))


def _named(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _tensors_of(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """The file to open, beside a ``detector.pt`` its ``detector.safetensors``; and the record that was read with it."""
    folder = path if path.is_dir() else path.parent
    inside = folder / "detector.safetensors"
    if path.is_dir():
        if not inside.is_file():
            raise InputError(f"{path}: no detector.safetensors in this folder")
        # Copied without the rest it speaks for itself: its header has the record and a digest.
        return inside, _listed(folder) if (folder / "detector.json").exists() else None
    if path.name == "detector.pt" and path.is_file() and inside.is_file():
        if not (folder / "detector.json").exists():
            raise InputError(
                f"{path}: detector.json is missing, which says whether {inside.name} belongs to it; "
                f"give {inside} itself, or {path.name} in a folder of its own"
            )
        return inside, _listed(folder)
    if len(path.parts) > 1 and not path.is_file():  # no name of weights
        raise InputError(f"{path}: no such file or folder")
    return path, None


def _listed(folder: Path) -> dict[str, Any]:
    """The record in detector.json, whose hashes are those of the files beside it.

    Raises:
        InputError: naming the file that does not fit.
    """
    path = folder / "detector.json"
    values = read_json(path)
    hashes = values.pop("sha256", None) if isinstance(values, dict) else None
    if not isinstance(hashes, dict):
        raise InputError(f"{path}: damaged, it lists no sha256 of the files beside it")
    for name in HASHED:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: is missing; {path.name} lists it")
        if sha256_of(folder / name) != hashes.get(name):
            if name.endswith(".safetensors"):
                read_stored(folder / name)  # a damaged one says itself what is wrong with it
            raise InputError(
                f"{folder / name}: is not the file that {path.name} lists; a run that was interrupted mends it when it "
                "goes on, else put the file back from a copy"
            )
    return values
