"""Safetensors files read slice by slice: single, sharded with a Hugging Face index, or a folder with either.

The format is an 8-byte little-endian length, a JSON header, and the tensors' bytes. It is read here rather than by the
safetensors package, whose memory map would count every page it touches as ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.sources import TensorSpec

INDEX_SUFFIX = ".safetensors.index.json"
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class _Place:
    """Where one tensor lies: file number and the offset of its first byte."""

    file: int
    offset: int


class SafetensorsSource:
    """A model in one or several safetensors files; only headers are read until a block is asked for.

    Keys that the header's metadata names as copies of another key (as ``safetensors.torch.save_model`` writes them for
    tied tensors) are present again, tied.

    Args:
        path: a ``.safetensors`` file, a ``.safetensors.index.json``, or a folder that holds one of them.

    Raises:
        FileNotFoundError: when the path or a shard does not exist.
        ValueError: when a file is truncated or damaged, or index and shards disagree.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.files, expected = _files(Path(path))
        self.specs: dict[str, TensorSpec] = {}
        self.tied: dict[str, str] = {}
        self._places: dict[str, _Place] = {}
        for number, file in enumerate(self.files):
            self._add(number, file)
        _check_index(self.name, expected, self._places, self.files)
        self._handles = [os.open(file, os.O_RDONLY) for file in self.files]

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """See :class:`merging.sources.TensorSource`.

        Raises:
            ValueError: when the file has become shorter than its header says.
        """
        key = self.tied.get(key, key)
        dtype, place = self.specs[key].dtype, self._places[key]
        size = (stop - start) * dtype.itemsize
        buffer = torch.empty(size, dtype=torch.uint8)
        view = memoryview(buffer.numpy())
        done = 0
        while done < size:
            got = os.preadv(self._handles[place.file], [view[done:]], place.offset + start * dtype.itemsize + done)
            if not got:
                raise ValueError(f"{self.files[place.file]}: ends inside '{key}'; the file is truncated")
            done += got
        return buffer.view(dtype)

    def close(self) -> None:
        """Close the files."""
        handles, self._handles = self._handles, []
        for handle in handles:
            os.close(handle)

    def __del__(self) -> None:
        if hasattr(self, "_handles"):
            self.close()

    def _add(self, number: int, file: Path) -> None:
        header, data = _header(file)
        metadata = header.pop("__metadata__", {}) or {}
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError(f"{file}: damaged, its __metadata__ is no mapping of texts")
        for key, (spec, begin) in _entries(file, header, os.path.getsize(file) - data):
            if key in self.specs:
                first = self.files[self._places[key].file].name
                raise ValueError(f"{file}: '{key}' is also in {first}; a tensor may be in one shard only")
            self.specs[key] = spec
            self._places[key] = _Place(number, data + begin)
        for key, first in metadata.items():
            # The metadata holds other texts too, such as format = pt; one that names a tensor of this file is a tie.
            if key != "format" and first in header and key not in header:
                self.specs[key] = self.specs[first]
                self.tied[key] = first


def is_safetensors(path: Path) -> bool:
    """Whether a path is something :class:`SafetensorsSource` opens, by its name."""
    return path.suffix == ".safetensors" or path.name.endswith(INDEX_SUFFIX) or path.is_dir()


def _files(path: Path) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """The files of a model, and what the index says: key → file name."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        return _files(_in_folder(path))
    if not path.name.endswith(INDEX_SUFFIX):
        return (path,), None
    weights = _read_json(path, path.read_bytes()).get("weight_map")
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights.values()):
        raise ValueError(f"{path}: expected a 'weight_map' from tensor names to file names")
    names = sorted(set(weights.values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{path}: shard '{name}' is outside the index's folder")
        if not (path.parent / name).is_file():
            raise FileNotFoundError(f"{path}: shard '{name}' does not exist")
    return tuple(path.parent / name for name in names), weights


def _in_folder(folder: Path) -> Path:
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    files = sorted(folder.glob("*.safetensors"))
    for found, what in ((indices, "indices"), (files, "safetensors files without an index")):
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{folder}: holds {len(found)} {what} ({found[0].name}, {found[1].name}); name one")
    raise FileNotFoundError(f"{folder}: holds no safetensors file")


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a file, and the offset at which its tensors begin."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"{file}: no safetensors file, or truncated ({size:,} bytes, header of {length:,} bytes)")
        header = _read_json(file, stream.read(length))
    return header, 8 + length


def _read_json(file: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _entries(file: Path, header: dict[str, Any], data_size: int) -> Iterator[tuple[str, tuple[TensorSpec, int]]]:
    """Key, dtype and shape, first byte; the tensors must fill the data without gap or overlap."""
    position = 0
    entries = [(key, *_entry(file, key, entry)) for key, entry in header.items()]
    for key, spec, begin, end in sorted(entries, key=lambda entry: (entry[2], entry[3])):
        if begin != position or end - begin != spec.nbytes:
            raise ValueError(
                f"{file}: '{key}' lies at bytes {begin} to {end}, which does not fit its shape or neighbours"
            )
        position = end
    if position != data_size:
        kind = "truncated" if position > data_size else "damaged"
        raise ValueError(
            f"{file}: {kind}: the header describes {position:,} bytes of tensors, the file has {data_size:,}"
        )
    for key, spec, begin, _ in entries:
        yield key, (spec, begin)


def _entry(file: Path, key: str, entry: Any) -> tuple[TensorSpec, int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
            raise TypeError
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{file}: the header's entry for '{key}' is damaged") from None
    if dtype not in DTYPES:
        raise ValueError(f"{file}: '{key}' has dtype {dtype}, which cannot be merged")
    return TensorSpec(DTYPES[dtype], tuple(shape)), begin, end


def _check_index(
    name: str, expected: dict[str, str] | None, places: dict[str, _Place], files: tuple[Path, ...]
) -> None:
    for key, file in (expected or {}).items():
        if key not in places:
            raise ValueError(f"{name}: the index puts '{key}' in {file}, which does not hold it")
        if files[places[key].file].name != file:
            raise ValueError(f"{name}: the index puts '{key}' in {file}, but it is in {files[places[key].file].name}")
