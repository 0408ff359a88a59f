"""Merging files into files, without holding a model in memory."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch

from merging.blocks import Progress
from merging.job import prepare_merge
from merging.opening import Model, open_family
from merging.plan import MergePlan, plan_merge
from merging.registry import METHODS, split_options
from merging.safetensors_writer import SafetensorsWriter, check_target, in_place, refuse_inputs, write_json
from merging.sources import TensorSource

DEFAULT_SHARD_BYTES = 5_000_000_000
_CHUNK = 1 << 20


@dataclass(frozen=True)
class MergedFiles:
    """What a merge wrote.

    Args:
        path: the file or folder asked for.
        provenance_path: the JSON beside it.
        provenance: what stands there.
        coefficients: see :class:`merging.MergeResult`.
        plan: what was merged, copied, kept and left out.
    """

    path: Path
    provenance_path: Path
    provenance: dict[str, Any]
    coefficients: dict[str, float] | None
    plan: MergePlan


def plan_files(method: str, base: Model, models: Sequence[Model], **options: Any) -> MergePlan:
    """The plan of :func:`merge_files`, without reading more than headers and without writing.

    Args:
        method: name of the method.
        base: path, mapping or source of the common ancestor.
        models: paths, mappings or sources of the models.
        options: as for :func:`merge_files`.

    Returns:
        The plan; its ``table()`` is meant for people.

    Raises:
        ValueError: as :func:`merge_files`, as far as headers and names tell.
        FileNotFoundError: when a path does not exist.
        TypeError: when an option has the wrong type.
    """
    _, settings = split_options(method, options)
    ancestor, sources = open_family(base, models)
    return plan_merge(ancestor, sources, settings.policy)


def merge_files(
    method: str,
    base: Model,
    models: Sequence[Model],
    out: str | Path,
    *,
    progress: Progress | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    hash_inputs: bool = True,
    overwrite: bool = False,
    **options: Any,
) -> MergedFiles:
    """Merge models on disk into safetensors on disk, block by block; memory does not grow with the models' size.

    The output appears under its name when it is complete and on the device, or not at all. Beside it, or in its folder,
    a JSON file says how it came about: method, paper, options, inputs with their sha256, versions.

    Args:
        method: a key of ``merging.METHODS``.
        base: the common ancestor: a path (see :func:`merging.opening.open_model`), or a mapping or source.
        models: the models, in order.
        out: a file ending in ``.safetensors``, or a folder, which gets ``model.safetensors``, or shards and an index.
        progress: called with the name of the phase, the scalars done and the scalars in total.
        max_shard_bytes: largest shard in a folder.
        hash_inputs: whether to hash the inputs' files, which takes longer than most merges.
        overwrite: whether an existing output is replaced.
        options: the method's options and the fields of :class:`merging.MergeSettings`.

    Returns:
        What was written.

    Raises:
        ValueError: for an unknown method or option, an option out of range, tensors that do not fit, numbers that are
            not finite, a damaged file, or a base equal to a model.
        TypeError: when an option has the wrong type.
        FileNotFoundError: when a path does not exist.
        FileExistsError: when the output exists and is not to be replaced.
        OSError: when the output cannot be written.
    """
    target = Path(out)
    own, settings = split_options(method, options)
    check_target(target, overwrite)
    ancestor, sources = open_family(base, models)
    refuse_inputs(target, [file for source in (ancestor, *sources) for file in source.files])
    plan_merge(ancestor, sources, settings.policy)  # before the hashes, which take a while
    hashes = hash_files(file for source in (ancestor, *sources) for file in source.files) if hash_inputs else {}
    _refuse_equal(ancestor, sources, hashes)
    merge = prepare_merge(method, METHODS[method].prepare, ancestor, sources, own, settings, progress)
    single = target.suffix == ".safetensors"
    with in_place(target, single=single, overwrite=overwrite) as folder:
        name = target.name if single else "model.safetensors"
        limit = None if single else max_shard_bytes
        writer = SafetensorsWriter(folder, merge.specs(), merge.inputs.plan.tied, name, limit)
        try:
            merge.run(writer.write)
            writer.finish()
        finally:
            writer.close()
        provenance = {**merge.provenance(), "coefficients": merge.merger.coefficients}
        record = _record(provenance, METHODS[method].paper, [ancestor, *sources], hashes)
        provenance_name = f"{target.stem}.provenance.json" if single else "provenance.json"
        write_json(folder / provenance_name, record)
    beside = target.parent if single else target
    return MergedFiles(target, beside / provenance_name, record, merge.merger.coefficients, merge.inputs.plan)


def _record(
    provenance: Mapping[str, Any], paper: str, sources: Sequence[TensorSource], hashes: Mapping[Path, str]
) -> dict[str, Any]:
    inputs = [{"name": source.name, "files": describe_files(source.files, hashes)} for source in sources]
    return {**provenance, "paper": paper, "base": inputs[0], "models": inputs[1:], "versions": versions()}


def describe_files(files: Iterable[Path], hashes: Mapping[Path, str]) -> list[dict[str, Any]]:
    """Files as a provenance names them: ``path`` and ``sha256``, which is ``None`` where it was not computed."""
    return [{"path": str(file), "sha256": hashes.get(file)} for file in files]


def versions(*more: str) -> dict[str, str]:
    """Versions of this package, Python, torch, numpy and further packages; ``not installed`` where one is absent."""
    found = {
        "duet-detection": _version("duet-detection"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
    return {**found, **{name: _version(name) for name in more}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def hash_files(files: Iterable[Path]) -> dict[Path, str]:
    """The sha256 of every file.

    Raises:
        OSError: when one cannot be read.
    """
    once = list(dict.fromkeys(files))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(once, pool.map(_sha256, once)))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _refuse_equal(base: TensorSource, models: Sequence[TensorSource], hashes: Mapping[Path, str]) -> None:
    own = sorted(hashes[file] for file in base.files) if hashes else []
    for model in models:
        if own and own == sorted(hashes[file] for file in model.files):
            raise ValueError(f"{model.name} is a copy of the base {base.name}: its task vector would be zero")
