"""Ultralytics checkpoints as inputs and output of ``duet merge``; the merging core sees their tensors alone."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from duet.errors import InputError
from duet.state import write_atomic
from merging.blocks import Progress
from merging.files import MergedFiles, merge_files
from merging.opening import open_model
from merging.safetensors_writer import in_place
from merging.sources import StateSource, TensorSource

if TYPE_CHECKING:
    from duet.detectors.base import Detector

SUFFIX = ".pt"


@dataclass(frozen=True)
class Input:
    """One model that the user named.

    Args:
        path: its file or folder.
        detector: the network, when the file is an Ultralytics checkpoint.
        model: what the merging core is given.
    """

    path: Path
    detector: Detector | None
    model: TensorSource


def open_input(path: Path, trust: bool = False) -> Input:
    """Open an Ultralytics checkpoint without running code from it; any other file is the merging core's.

    Args:
        path: what the user named.
        trust: open an Ultralytics checkpoint that could run code.

    Returns:
        The input; a checkpoint's tensors are float32 and in memory.

    Raises:
        InputError: when a file that names Ultralytics' classes is damaged, or holds anything beside known classes.
        ValueError: when another file is damaged or of no known kind.
        FileNotFoundError: when it does not exist.
    """
    if not _names_ultralytics(path):
        return Input(path, None, open_model(path, path.name))
    from duet.detectors.ultralytics_checkpoint import open_checkpoint

    detector = open_checkpoint(path, trust)
    return Input(path, detector, StateSource(detector.state(), str(path), (path,)))


def refuse_other_heads(base: Input, models: Sequence[Input], policy: str) -> None:
    """Refuse checkpoints whose class rows do not mean the same.

    Args:
        base: the common ancestor; may have other names for as many classes, since only its tensors count.
        models: the models.
        policy: with ``error`` the numbers of classes must agree; another says what happens to rows that do not fit.

    Raises:
        InputError: naming two files and their numbers of classes, or the first class that differs.
    """
    known = [given for given in (*models, base) if given.detector]
    for given in known[1:] if policy == "error" else ():
        first, other = len(known[0].detector.classes), len(given.detector.classes)
        if first != other:
            raise InputError(
                f"{known[0].path} has {first} classes and {given.path} has {other}, so that their heads do not fit; "
                "--set policy=base goes on with the base's class rows, --set policy=intersection without class rows"
            )
    tuned = [given for given in models if given.detector]
    for given in tuned[1:]:
        _refuse_other_names(tuned[0], given)


def merge_into_checkpoint(
    method: str,
    base: Input,
    models: Sequence[Input],
    out: Path,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
    **options: Any,
) -> MergedFiles:
    """Merge Ultralytics checkpoints into one that ``YOLO(out)`` opens; it appears complete or not at all.

    Architecture and class names are those of the first model, or of the base with ``policy="base"``, whose head the
    result then may have.

    Args:
        method: name of the method.
        base: the common ancestor.
        models: the models, in order.
        out: the file to write, ending in ``.pt``; the provenance goes beside it.
        progress: see :func:`merging.merge_files`.
        overwrite: whether an existing output is replaced.
        options: as for :func:`merging.merge_files`.

    Returns:
        What was written.

    Raises:
        InputError: when an input is no Ultralytics checkpoint, or the policy is ``intersection``.
        OSError: when the output cannot be written.
        ValueError: see :func:`merging.merge_files`.
    """
    template = _template(base, models, out, options.get("policy", "error"))
    with in_place(out, single=True, overwrite=overwrite) as folder:
        merged = merge_files(
            method,
            base.model,
            [given.model for given in models],
            folder / "m.safetensors",
            progress=progress,
            **options,
        )
        template.load_state(load_file(merged.path))
        merged.path.unlink()
        record = folder / f"{out.stem}.provenance.json"
        os.replace(merged.provenance_path, record)
        try:
            write_atomic(folder / out.name, template.save_checkpoint)
        except RuntimeError as error:  # torch's writer says so when the device is full
            raise OSError(
                f"{out}: cannot be written ({str(error).splitlines()[0]}); nothing was left behind"
            ) from error
    return MergedFiles(out, out.parent / record.name, merged.provenance, merged.coefficients, merged.plan)


def _names_ultralytics(path: Path) -> bool:
    """Whether the pickle in a file of ``torch.save`` mentions Ultralytics' classes; nothing of it is run."""
    if path.suffix != SUFFIX or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return any(b"ultralytics.nn" in archive.read(name) for name in names)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError):
        return False  # whoever opens it says what is wrong


def _refuse_other_names(first: Input, other: Input) -> None:
    classes = first.detector.classes, other.detector.classes
    if len(classes[0]) == len(classes[1]) and classes[0] != classes[1]:
        index, (one, two) = next((index, pair) for index, pair in enumerate(zip(*classes)) if pair[0] != pair[1])
        raise InputError(
            f"class {index} is '{one}' in {first.path} and '{two}' in {other.path}: rows of different classes would be "
            "merged; merge the state dicts of both if that is meant"
        )


def _template(base: Input, models: Sequence[Input], out: Path, policy: str) -> Detector:
    """The network whose architecture and names the output has."""
    for given in (base, *models):
        if given.detector is None:
            raise InputError(f"{given.path}: no Ultralytics checkpoint, as {out} needs; ask for a .safetensors output")
    if policy == "intersection":
        raise InputError(
            f"{out}: a checkpoint needs what policy=intersection leaves out; ask for a .safetensors output"
        )
    return (base if policy == "base" else models[0]).detector
