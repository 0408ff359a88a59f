"""What a user names to predict on: image files, folders, patterns, videos, streams; read frame by frame."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from duet.datasets.pictures import IMAGE_SUFFIXES, read_bgr
from duet.errors import InputError

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}


@dataclass(frozen=True)
class Source:
    """One file or stream.

    Args:
        kind: how it is read.
        name: path, or the stream's address.
    """

    kind: Literal["image", "video", "stream"]
    name: str


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Args:
        source: where it comes from.
        number: its place in a video or stream, from 1; None for an image file.
        place: its place among all frames, from 1.
        picture: (H, W, 3) uint8, blue green red.
        fps: frames per second of a video; None for others.
    """

    source: Source
    number: int | None
    place: int
    picture: np.ndarray
    fps: float | None = None


def find_sources(names: Sequence[str]) -> tuple[Source, ...]:
    """The files or the stream behind what a user wrote.

    Args:
        names: image or video files, folders (their own images and videos, no sub-folders), patterns such as
            ``day/**/*.jpg``, or the address of one stream: a URL, or the number of a camera.

    Raises:
        InputError: when something does not exist, or holds no image or video.
    """
    found = tuple(source for name in names for source in _sources(name))
    if len(found) > 1 and any(source.kind == "stream" for source in found):
        raise InputError("SOURCE: expected files, or one stream alone")
    return tuple(dict.fromkeys(found))


def frame_count(sources: Sequence[Source]) -> int | None:
    """How many frames there will be, as far as the videos tell; None for a stream."""
    total = 0
    for source in sources:
        if source.kind == "stream":
            return None
        total += 1 if source.kind == "image" else _video_length(source)
    return total


def read_frames(
    sources: Sequence[Source],
    failed: Callable[[Source, str], None],
    open_stream: Callable[[str], Iterator[np.ndarray]],
) -> Iterator[Frame]:
    """The frames of all sources, one after the other.

    Args:
        sources: what to read.
        failed: called with what cannot be read and why; the rest is still read.
        open_stream: opens the address of a stream.
    """
    places = count(1)
    for source in sources:
        if source.kind == "stream":
            for number, picture in enumerate(open_stream(source.name), start=1):
                yield Frame(source, number, next(places), picture)
        elif source.kind == "video":
            yield from _video_frames(source, places, failed)
        else:
            picture = _read_image(source, failed)
            if picture is not None:
                yield Frame(source, None, next(places), picture)


def _sources(name: str) -> list[Source]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _known(sorted(path.iterdir()), f"{name}: no image or video in this folder")
    if path.is_file():
        return _known([path], f"{name}: not an image or video by its ending")
    if "://" in name or name.isdecimal():
        return [Source("stream", name)]
    if glob.has_magic(name):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        return _known(matches, f"{name}: matches no image or video")
    raise InputError(f"{name}: no such file, folder or stream")


def _known(paths: Sequence[Path], otherwise: str) -> list[Source]:
    kinds = {**dict.fromkeys(IMAGE_SUFFIXES, "image"), **dict.fromkeys(VIDEO_SUFFIXES, "video")}
    found = [Source(kinds[path.suffix.lower()], str(path)) for path in paths if path.suffix.lower() in kinds]
    if not found:
        raise InputError(f"{otherwise}; known endings: {' '.join(sorted(kinds))}")
    return found


def _video_length(source: Source) -> int:
    video = cv2.VideoCapture(source.name)
    length = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    return max(length, 0)


def _read_image(source: Source, failed: Callable[[Source, str], None]) -> np.ndarray | None:
    try:
        return read_bgr(Path(source.name))
    except InputError as error:
        failed(source, str(error))
    except cv2.error:  # more pixels than OpenCV agrees to
        failed(source, f"{source.name}: not a readable image")
    return None


def _video_frames(source: Source, places: Iterator[int], failed: Callable[[Source, str], None]) -> Iterator[Frame]:
    video = cv2.VideoCapture(source.name)
    try:
        fps = video.get(cv2.CAP_PROP_FPS)
        fps = fps if 0 < fps < 1000 else 30.0  # containers without a rate say 0, NaN or their clock's
        number = 0
        while True:
            success, picture = video.read()
            if not success:
                break
            number += 1
            yield Frame(source, number, next(places), picture, fps)
    finally:
        video.release()
    if number == 0:
        failed(source, f"{source.name}: not a readable video")
