"""Finished outputs put in their places so that a kill at any instant leaves the old output or the new one."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psutil import pid_exists

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux
_HERE = -100  # AT_FDCWD


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Give a folder of a temporary name beside the target; what was not moved out of it is deleted at the end.

    Args:
        target: the file or folder to come to be; its folder exists.

    Yields:
        The temporary folder.

    Raises:
        OSError: when it cannot be made.
    """
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        partial.mkdir()
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_files(partial: Path, target: Path) -> None:
    """Move a finished file and those that tell about it out of the temporary folder.

    Where a target is replaced, what told about the old one goes first and what tells about the new one comes last: it
    may be missing after a kill, and never tells about another file.

    Args:
        partial: the temporary folder.
        target: the file; the others go beside it.
    """
    beside = [path for path in sorted(partial.iterdir()) if path.name != target.name]
    replaced = target.exists()
    if replaced:
        for path in beside:
            (target.parent / path.name).unlink(missing_ok=True)
    for path in [partial / target.name, *beside] if replaced else [*beside, partial / target.name]:
        os.replace(path, target.parent / path.name)


def put_folder(partial: Path, target: Path) -> None:
    """Give the temporary folder the target's name; an old target goes.

    Where the system cannot exchange two folders in one step, a kill between two renamings leaves the old one under
    another name; :func:`tidy` brings it back.
    """
    if not target.exists():
        os.rename(partial, target)
    elif exchange(partial, target):
        shutil.rmtree(partial)
    else:
        old = target.parent / f".{target.name}.replaced-{os.getpid()}"
        os.rename(target, old)
        os.rename(partial, target)
        shutil.rmtree(old)


def exchange(first: Path, second: Path) -> bool:
    """Let two folders change names in one step.

    Returns:
        False where the system or its file system has no such call.

    Raises:
        OSError: when the system refuses.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if call(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(first))


def tidy(target: Path) -> None:
    """Bring back an output that a killed merge had moved away, and delete what killed merges left unfinished."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"(partial|replaced)-(\d+)")
    for path in target.parent.iterdir():
        found = pattern.fullmatch(path.name)
        if found is None or pid_exists(int(found[2])):
            continue
        if found[1] == "replaced" and not target.exists():
            os.rename(path, target)
        else:
            shutil.rmtree(path, ignore_errors=True)
