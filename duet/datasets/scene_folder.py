"""Folders of generated scenes: a YOLO data set that is written once and is complete or absent."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import cv2
import numpy as np

from duet.datasets.pasting import Scene
from duet.disk import move_into_place

Split = Literal["train", "test"]
Render = Callable[[str, int], Scene]  # (domain, number of the scene) → the scene

_SPLITS: tuple[Split, ...] = ("train", "test")
_INDEX_FILE = "scenes.json"


class SceneSource(Protocol):
    """Settings, a dataclass, from which scenes are drawn; equal settings give equal scenes."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    train_scenes: int
    test_scenes: int

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, one folder each."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What a label's first number means."""

    @property
    def generator_version(self) -> int:
        """Rises with every change of the generator that changes a pixel or a label."""

    @property
    def folder_name(self) -> str:
        """A name that no other settings and no other version have."""

    def renderer(self, split: Split) -> Render:
        """How the scenes of a split are drawn."""


def hashed_name(prefix: str, settings: SceneSource) -> str:
    """The prefix and twelve hexadecimal digits of the settings and the generator's version."""
    text = json.dumps({"generator": settings.generator_version, **asdict(settings)}, sort_keys=True)
    return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def write_scenes(root: Path, settings: SceneSource, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the scenes once and say where they are.

    The layout is ``<domain>/<train|test>/<images|labels>/NNNN.<png|txt>`` with ``classes.txt`` per domain and
    ``scenes.json`` (settings, sha256 of all contents) at the top. Everything is written to a temporary folder
    that is renamed at the end, so the folder is complete or absent; a complete one is returned at once.

    Args:
        root: where the folder of these settings stands or will stand; made when it is missing.
        settings: what to write.
        progress: called with (scenes written, scenes in all) after every scene.

    Returns:
        The folder, named by the settings.

    Raises:
        ImportError: when a package is missing that has the objects, and there is something to write.
        ValueError: when the objects lack one of the classes.
    """
    folder = Path(root) / settings.folder_name
    if _is_whole(folder):
        return folder
    renderers = {split: settings.renderer(split) for split in _SPLITS}
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_domains(part, settings, renderers, progress)
        index = {"generator": settings.generator_version, "settings": asdict(settings), "sha256": content_hash(part)}
        (part / _INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        part.chmod(0o755)  # mkdtemp keeps others out; the cache may be shared
        if folder.exists() and not _is_whole(folder):  # half written by other means
            shutil.rmtree(folder)
        move_into_place(part, folder, _is_whole)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def content_hash(folder: Path) -> str:
    """The sha256 over the paths and contents of a folder's files, without ``scenes.json``."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _INDEX_FILE):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _write_domains(
    folder: Path,
    settings: SceneSource,
    renderers: dict[Split, Render],
    progress: Callable[[int, int], None] | None,
) -> None:
    counts = {"train": settings.train_scenes, "test": settings.test_scenes}
    total, done = sum(counts.values()) * len(settings.domains), 0
    for domain in settings.domains:
        for split in _SPLITS:
            images, labels = (folder / domain / split / kind for kind in ("images", "labels"))
            images.mkdir(parents=True)
            labels.mkdir()
            for index in range(counts[split]):
                scene = renderers[split](domain, index)
                _write_picture(images / f"{index:04d}.png", scene.image_bgr)
                (labels / f"{index:04d}.txt").write_text(_label_text(scene), encoding="utf-8")
                done += 1
                if progress is not None:
                    progress(done, total)
        (folder / domain / "classes.txt").write_text("\n".join(settings.class_names) + "\n", encoding="utf-8")


def _write_picture(path: Path, image_bgr: np.ndarray) -> None:
    # Through bytes: cv2.imwrite reports a full disk by its return value only, and fails on some non-ASCII paths.
    encoded, data = cv2.imencode(".png", image_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert encoded
    path.write_bytes(data.tobytes())


def _label_text(scene: Scene) -> str:
    """YOLO's lines: class, centre x, centre y, width, height, as shares of the picture."""
    size = scene.image_bgr.shape[0]
    lines = []
    for label, (left, top, right, bottom) in zip(scene.classes, scene.boxes_xyxy):
        values = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        lines.append(" ".join([str(label), *(f"{value / size:.6f}" for value in values)]) + "\n")
    return "".join(lines)


def _is_whole(folder: Path) -> bool:
    return (folder / _INDEX_FILE).is_file()
