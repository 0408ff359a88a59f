"""Files that survive a kill: atomic writes, hashes, and the record of what a run folder holds.

Every file is written to a temporary name in its own folder, synced and renamed, so that a reader sees the old or the
new content and never a part of it. ``state.json`` lists the sha256 of each finished file; a file that no longer
matches is refused by name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from duet.disk import DiskError, disk_error, is_leftover, remove_leftovers
from duet.documents import read_json
from duet.errors import InputError
from duet.paths import stays_inside

STATE_FILE = "state.json"
LOCK_FILE = ".lock"
OUTPUTS = ("detector.json", "results.json", "results.csv", "report.html")  # written after every stage
# What a run writes before its first stage is finished.
OWN_FILES = ("config.yaml", "data.json", "reference.json", "reference-detections.safetensors", "detector.pt")


def _default_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


_DEFAULT_MODE = _default_mode()


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def digest_of(value: Any) -> str:
    """The sha256 of a JSON-serialisable value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_atomic(path: Path, write: Callable[[Path], None], verify: Callable[[Path], bool] | None = None) -> None:
    """Call ``write`` with a temporary path beside ``path``, sync what it wrote and rename it to ``path``.

    Nothing is left behind when ``write`` raises.

    Args:
        path: the file.
        write: writes it.
        verify: reads what was written and says whether it is what was to be written; called before the renaming.

    Raises:
        OSError: in one sentence, when the disk is full, read-only or broken, or gives back something else.
    """
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device"
        raise DiskError(f"{path}: is a {kind}, whose place no file can take", errno.EISDIR)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.chmod(_DEFAULT_MODE)  # safetensors writes for the owner alone
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        if verify is not None and not verify(temporary):
            raise OSError(errno.EIO, "read back otherwise than written")
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        explained = disk_error(error, path)
        if explained is None:
            raise
        raise explained from error
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8, and read it back before it takes its place."""
    content = text.encode("utf-8")
    write_atomic(
        path, lambda temporary: temporary.write_bytes(content), lambda temporary: temporary.read_bytes() == content
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN and infinities are refused because JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock ends with the process, however it ends.

    Raises:
        InputError: when another process holds it.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{folder}: another process is working on this run; wait for it or stop it") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        remove_leftovers(folder)
        yield
    finally:
        lock.release()


class NoSuchRole(InputError, KeyError):
    """A stage that was recorded without a file of this role, by an older version or by other hands."""

    __str__ = InputError.__str__


class RunState:
    """The record of a run folder: which configuration it belongs to and which stages are finished.

    Args:
        folder: the run folder; created when absent.
        fingerprint: digest of everything that decides the run's numbers. A folder that holds another run is refused.
        differs: says how that run differs, for the message.

    Raises:
        InputError: when the folder belongs to a run with another configuration, or holds other files.
    """

    def __init__(self, folder: Path, fingerprint: str, differs: Callable[[], str] | None = None) -> None:
        self.folder = folder
        path = folder / STATE_FILE
        try:
            if not path.exists():
                self._create(fingerprint)
                return
        except OSError as error:
            raise InputError(f"{folder}: cannot be made a run folder ({reason(error)})") from error
        self._record = _checked(read_json(path), path)
        if self._record["fingerprint"] == fingerprint:
            return
        if self._record["stages"]:
            why = differs() if differs else "its config.yaml says which"
            raise InputError(
                f"{folder}: holds a run with another configuration ({why}); choose another --out, or delete the folder"
            )
        with only_user(folder):
            self._start_over(fingerprint)  # another try at a run of which nothing was finished

    @property
    def finished_stages(self) -> int:
        """Number of stages whose files are all in place."""
        return len(self._record["stages"])

    def finish_stage(self, files: Mapping[str, Path]) -> None:
        """Record a stage: its files by role, with their hashes. From here on the stage is not repeated.

        In the same instant ``OUTPUTS`` of the stages before are no longer recorded, and so will be made anew.
        """
        entry = {}
        for name in OUTPUTS:
            self._record["files"].pop(name, None)
        for role, path in files.items():
            name = path.relative_to(self.folder).as_posix()
            self._record["files"][name] = sha256_of(path)
            entry[role] = name
        self._record["stages"].append(entry)
        self._save()

    def stage_file(self, number: int, role: str) -> Path:
        """A verified file of a finished stage (1-based).

        Raises:
            InputError: when the file is missing or is not what was written.
            NoSuchRole: when the stage has no such file.
        """
        stage = self._record["stages"][number - 1]
        if role not in stage:
            raise NoSuchRole(f"{self.folder / STATE_FILE}: names no {role} of stage {number}")
        path = self.folder / stage[role]
        if not path.is_file():
            raise InputError(f"{path}: missing, although stage {number} is recorded as finished")
        if not self._is_as_recorded(path):
            raise InputError(
                f"{path}: damaged, its sha256 is not the one in {STATE_FILE}; put the file back from a copy, or start "
                "the run anew in another folder"
            )
        return path

    def keep(self, *names: str) -> None:
        """Record files of the folder that belong to no stage, with their hashes."""
        self._record["files"].update({name: sha256_of(self.folder / name) for name in names})
        self._save()

    def kept(self, name: str) -> Path | None:
        """A verified file that belongs to no stage; None when it has to be made.

        One that is there and not recorded was renamed just before a kill, and so is whole: it is recorded now.

        Raises:
            InputError: when it is there and is not what was written.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        if name not in self._record["files"]:
            self.keep(name)
        elif not self._is_as_recorded(path):
            raise InputError(
                f"{path}: damaged, its sha256 is not the one in {STATE_FILE}; delete it to have it made anew"
            )
        return path

    def is_whole(self, *names: str) -> bool:
        """Whether files that :meth:`keep` recorded are there as they were written."""
        return all((self.folder / name).is_file() and self._is_as_recorded(self.folder / name) for name in names)

    def verify(self) -> None:
        """Check the hash of every file of a stage.

        Raises:
            InputError: naming the first file that is missing or damaged.
        """
        for number, stage in enumerate(self._record["stages"], start=1):
            for role in stage:
                self.stage_file(number, role)

    def _is_as_recorded(self, path: Path) -> bool:
        return sha256_of(path) == self._record["files"].get(path.relative_to(self.folder).as_posix())

    def _create(self, fingerprint: str) -> None:
        folder = self.folder
        if folder.exists() and any(path.name != LOCK_FILE and not is_leftover(path) for path in folder.iterdir()):
            raise InputError(f"{folder}: not empty and not a run folder; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        self._record = {"fingerprint": fingerprint, "files": {}, "stages": []}
        self._save()

    def _start_over(self, fingerprint: str) -> None:
        for name in OWN_FILES:
            (self.folder / name).unlink(missing_ok=True)
        self._record = {"fingerprint": fingerprint, "files": {}, "stages": []}
        self._save()

    def _save(self) -> None:
        write_json(self.folder / STATE_FILE, self._record)


def reason(error: OSError) -> str:
    """What the system says of an error."""
    return os.strerror(error.errno) if error.errno else str(error)


def _checked(record: Any, path: Path) -> dict[str, Any]:
    """The content of a state.json.

    Raises:
        InputError: when it is no run's record, or names a file outside the run folder.
    """
    if not isinstance(record, dict) or set(record) != {"fingerprint", "files", "stages"}:
        raise InputError(f"{path}: damaged, it is not a run's record")
    files, stages = record["files"], record["stages"]
    sound = isinstance(files, dict) and isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages)
    if not sound:
        raise InputError(f"{path}: damaged, its files or stages are of another form")
    for name in [*files, *(name for stage in stages for name in stage.values())]:
        if not isinstance(name, str) or not stays_inside(name):
            raise InputError(f"{path}: names the file {name!r}, which is not inside the run folder")
    return record


def _digest(stream: Any) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk, so that a renaming outlives a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
