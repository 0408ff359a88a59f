"""What a disk refuses, in one sentence, and what killed processes left on it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from psutil import pid_exists

# What the user can mend; other codes are faults of a program and stay as they are.
_OF_THE_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
_LITTLE = 1 << 20  # bytes; a device with less left is taken for full when a writer does not say why it failed
_PART = re.compile(r"\..+\.(\d+)\.part|\.tmp\w{6}")  # ours, with the process; those of safetensors


class DiskError(OSError):
    """What a device refused, in one sentence; ``errno`` is the system's code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.errno = code

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.errno)  # it travels between processes


def disk_error(error: BaseException, path: Path) -> DiskError | None:
    """What a device refused, in one sentence.

    Args:
        error: what the writer raised: an ``OSError``, or what torch and safetensors make of one.
        path: the file or folder that was to be written, where the error does not name it.

    Returns:
        None for an error that is none of the disk's.
    """
    if isinstance(error, DiskError):
        return error
    code = _code(error, path)
    if code not in _OF_THE_DISK:
        return None
    sentence = f"{path}: {os.strerror(code)}{_free(code, path)}; what stood there before stays"
    return DiskError(sentence, code)


def move_into_place(part: Path, folder: Path, is_whole: Callable[[Path], bool]) -> None:
    """Rename a finished folder to its name; where another process finished the same one meanwhile, ours goes away.

    Args:
        part: the finished folder.
        folder: its place.
        is_whole: whether what stands there is finished.

    Raises:
        OSError: when it cannot be renamed, and nothing finished stands there.
    """
    try:
        part.rename(folder)
    except OSError:
        if not is_whole(folder):
            raise
        shutil.rmtree(part)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete temporary files and folders that killed processes left behind.

    Args:
        folder: where they lie; what is in folders below it stays.
        name: of the file they were to become; a pattern of ``glob``. Those of processes that still run stay.
    """
    for path in [*folder.glob(f".{name}.*.part"), *(folder.glob(".tmp??????") if name == "*" else ())]:
        found = _PART.fullmatch(path.name)
        if found is None or (found[1] and pid_exists(int(found[1]))):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a name is that of a temporary file or folder."""
    return _PART.fullmatch(path.name) is not None


def _code(error: BaseException, path: Path) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    said = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
    if said:
        return int(said[1])
    if isinstance(error, RuntimeError) and "inline_container" in str(error) and _bytes_left(path) < _LITTLE:
        return errno.ENOSPC  # torch's writer says only that it stopped
    return None


def _free(code: int, path: Path) -> str:
    return f" ({_bytes_left(path):,} bytes are free)" if code == errno.ENOSPC else ""


def _bytes_left(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return 0
