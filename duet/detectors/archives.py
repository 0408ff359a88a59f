"""What lies in a file of torch, found by reading it; nothing of it is run."""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from pathlib import Path

# What checkpoints are made of. This list only decides what a message calls foreign; torch's loader decides what opens.
_USUAL = {"torch", "ultralytics", "numpy", "collections", "pathlib", "duet"}
_MOST_BYTES = 50_000_000  # of the pickle itself; tensors lie outside


def archive_is_whole(path: Path) -> bool:
    """Whether every part of a file of ``torch.save`` has its archive's checksum; torch does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return False


def foreign_name(path: Path) -> str | None:
    """The first class or function in a file's pickle that checkpoints do not hold, such as ``os.system``.

    Args:
        path: a file of ``torch.save``, new or old, or a bare pickle.

    Returns:
        None when there is none, or the file is no pickle.
    """
    data = _pickle_of(path)
    strings: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in ("GLOBAL", "INST"):
                name = str(argument).replace(" ", ".")
            elif code.name == "STACK_GLOBAL":
                name = ".".join(strings[-2:])
            else:
                if isinstance(argument, str) and "UNICODE" in code.name:
                    strings.append(argument)
                continue
            if name.partition(".")[0] not in _USUAL:
                return name
    except (ValueError, IndexError, EOFError, UnicodeDecodeError):
        return None
    return None


def _pickle_of(path: Path) -> bytes:
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as stream:
                return stream.read(_MOST_BYTES)
        with zipfile.ZipFile(path) as archive:
            found = [item for item in archive.infolist() if item.filename.endswith("/data.pkl")]
            return archive.read(found[0]) if found and found[0].file_size <= _MOST_BYTES else b""
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return b""
