"""Safetensors files written block by block, in shards, and put in place at once or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.blocks import Range
from merging.placing import partial_folder, put_files, put_folder, tidy
from merging.safetensors_reader import DTYPES
from merging.sources import TensorSpec

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"


class SafetensorsWriter:
    """One model, written into files of known layout.

    Space for every file is reserved when it is opened. Blocks may come in any order and from several threads.

    Args:
        folder: where the files go; exists.
        specs: key → dtype and shape, tied keys included.
        tied: key → the key whose tensor it shares; named in the header's metadata, as ``safetensors.torch.save_model``
            does, and not stored twice.
        name: file name of a model that is not sharded.
        max_shard_bytes: largest size of a file's tensors, unless one tensor alone is larger; ``None`` for one file.

    Raises:
        OSError: when the files cannot be created or there is no space.
    """

    def __init__(
        self,
        folder: Path,
        specs: Mapping[str, TensorSpec],
        tied: Mapping[str, str],
        name: str = "model.safetensors",
        max_shard_bytes: int | None = None,
    ) -> None:
        own = {key: spec for key, spec in specs.items() if key not in tied}
        shards = _shards(own, max_shard_bytes)
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        self._names = names if len(shards) > 1 else [name]
        self._handles: list[int] = []
        self._places: dict[str, tuple[int, int, int]] = {}  # key → handle, offset of the first byte, bytes per scalar
        self._missing: dict[int, int] = {}  # handle → bytes to come
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1)
        self._syncing: list[Future[None]] = []
        self._folder = folder
        self._shards = shards
        self.nbytes = sum(spec.nbytes for spec in own.values())
        for name, keys in zip(self._names, shards):
            self._open(folder / name, {key: own[key] for key in keys}, tied)

    def write(self, at: Range, block: Tensor) -> None:
        """Write one block of a tensor.

        Raises:
            OSError: when the device refuses.
        """
        handle, offset, size = self._places[at.key]
        view = memoryview(block.contiguous().view(torch.uint8).numpy())
        written, position = len(view), offset + at.start * size
        while view:
            done = os.pwrite(handle, view, position)
            view, position = view[done:], position + done
        with self._lock:
            self._missing[handle] -= written
            if self._missing[handle] == 0:  # the device works while the next shard is computed
                self._syncing.append(self._pool.submit(os.fsync, handle))

    def finish(self) -> None:
        """Write the index of a sharded model, and force everything to the device."""
        if len(self._shards) > 1:
            weights = {key: name for name, keys in zip(self._names, self._shards) for key in keys}
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": weights}
            write_json(self._folder / INDEX, index)
        for future in self._syncing:
            future.result()  # an error of the device is told only once
        for handle in self._handles:
            os.fsync(handle)  # once more: a block may have come a second time
        self.close()

    def close(self) -> None:
        """Close the files as they are."""
        self._pool.shutdown()
        handles, self._handles = self._handles, []
        for handle in handles:
            os.close(handle)

    def _open(self, path: Path, specs: dict[str, TensorSpec], tied: Mapping[str, str]) -> None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._handles.append(handle)
        text, offsets = _header(specs, {key: first for key, first in tied.items() if first in specs})
        self._missing[handle] = sum(spec.nbytes for spec in specs.values())
        _reserve(handle, len(text) + self._missing[handle])
        os.pwrite(handle, text, 0)
        for key, offset in offsets.items():
            self._places[key] = (handle, len(text) + offset, specs[key].dtype.itemsize)


@contextmanager
def in_place(target: Path, *, single: bool, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder of a temporary name beside the target; move what is in it into place when all went well.

    Nothing is left behind by an error or an interruption.

    Args:
        target: the file or folder to come to be.
        single: whether the target is a file, beside which all files of the folder go, the target last; else the target
            is the folder.
        overwrite: whether an existing target is replaced.

    Yields:
        The temporary folder.

    Raises:
        FileExistsError: when the target exists and is not to be replaced.
        FileNotFoundError: when the folder that is to hold it does not exist.
        OSError: when it cannot be written; one sentence with the target's name.
    """
    if target.parent.is_dir():
        tidy(target)
    check_target(target, overwrite)
    if target.exists() and target.is_dir() == single:
        raise FileExistsError(f"{target}: is a {'folder' if single else 'file'}; choose another name")
    try:
        with partial_folder(target) as partial:
            yield partial
            if single:
                put_files(partial, target)
            else:
                put_folder(partial, target)
        sync_folder(target.parent)
    except OSError as error:
        raise _explained(error, target) from error


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target that exists already, or whose folder does not.

    Raises:
        FileExistsError: when it exists and is not to be replaced.
        FileNotFoundError: when its folder does not exist.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such folder to write {target.name} into")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: exists already; choose another name, or ask to overwrite it")
    if target.is_symlink():
        raise FileExistsError(f"{target}: is a symbolic link, which is not replaced; choose another name")
    if target.is_dir():
        _refuse_foreign(target)


def refuse_inputs(target: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is one of the inputs, or a folder that holds one.

    Raises:
        FileExistsError: naming the input.
    """
    place = target.resolve()
    for file in inputs:
        if place == file.resolve() or place in file.resolve().parents:
            raise FileExistsError(f"{target}: is or holds the input {file}; choose another name for the output")


def _refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but what a merge writes."""
    for path in sorted(folder.iterdir()):
        if path.name != "provenance.json" and not path.name.endswith((".safetensors", ".safetensors.index.json")):
            raise FileExistsError(f"{folder}: holds {path.name}, which no merge wrote; it is not replaced")
    if not (folder / "provenance.json").is_file():
        raise FileExistsError(f"{folder}: has no provenance.json, so no merge wrote it; it is not replaced")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON, indented, and force it to the device."""
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the device."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _shards(specs: Mapping[str, TensorSpec], largest: int | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for key, spec in specs.items():
        if shards[-1] and largest is not None and filled + spec.nbytes > largest:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += spec.nbytes
    return shards


def _header(specs: Mapping[str, TensorSpec], tied: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file, and where each tensor begins after them."""
    # Larger scalars first, as safetensors itself does: every tensor is then aligned to its own size.
    order = sorted(specs, key=lambda key: -specs[key].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **tied}}
    offsets, position = {}, 0
    for key in order:
        spec = specs[key]
        offsets[key], end = position, position + spec.nbytes
        header[key] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets


def _reserve(handle: int, size: int) -> None:
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
            return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    os.ftruncate(handle, size)  # where space cannot be reserved, a lack of it shows while writing


def _explained(error: OSError, target: Path) -> OSError:
    """The same kind of error, in one sentence about the target."""
    if error.errno == errno.ENOSPC:
        reason = f"no space left on the device ({shutil.disk_usage(target.parent).free:,} bytes are free)"
    elif error.errno is None:
        return error
    else:
        reason = os.strerror(error.errno)
    explained = type(error)(f"{target}: cannot be written: {reason}; nothing was left behind")
    explained.errno = error.errno
    return explained
