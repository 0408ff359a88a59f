"""Image files: which there are in a folder, their size as shown, their pixels as the trainer sees them."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from duet.errors import InputError

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MIN_SIDE = 10  # Ultralytics leaves out smaller pictures with no more than a warning
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_HEAD = 4096  # bytes in which the frame of most JPEG files begins
_APP1 = 0xE1  # EXIF or XMP
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FRAME = struct.Struct(">HHB")  # height, width, channels
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


@dataclass(frozen=True)
class PictureFacts:
    """What the header of an image file says.

    Args:
        size_hw: height and width as the picture is shown, EXIF orientation applied, as OpenCV and Ultralytics read it.
        mode: Pillow's mode, such as ``RGB``, ``L``, ``CMYK``, ``I;16``.
        orientation: EXIF orientation, 1 for an upright picture.
    """

    size_hw: tuple[int, int]
    mode: str
    orientation: int


def picture_facts(path: str | Path) -> PictureFacts:
    """Read the header of an image file and see whether the file is complete.

    Raises:
        InputError: when it is no image, is cut off, or is too small to train on.
    """
    try:
        width, height, mode, orientation = _plain_jpeg(path) or _any_header(path)
    except (UnidentifiedImageError, OSError, ImportError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: {_why_unreadable(path)}") from error
    size_hw = (width, height) if orientation in _TURNED else (height, width)
    if min(size_hw) < MIN_SIDE:
        raise InputError(f"{path}: {width} × {height} pixels, expected at least {MIN_SIDE} on each side")
    return PictureFacts(size_hw, mode, orientation)


def ends_as_jpeg_should(path: Path) -> bool:
    """Whether the last two bytes are JPEG's end; Ultralytics rewrites a JPEG file for which they are not."""
    with path.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - 2))
        return stream.read() == _ENDINGS["JPEG"]


def read_bgr(path: Path) -> np.ndarray:
    """The pixels as Ultralytics reads them: three channels of 8 bits, EXIF orientation applied.

    Returns:
        ``(H, W, 3)`` uint8, blue green red.

    Raises:
        InputError: when the file is not a readable image.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)  # paths with any characters, unlike cv2.imread on some systems
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise InputError(f"{path}: not a readable image")
    return picture


def image_names(folder: Path) -> list[str]:
    """Names of the image files of a folder by their suffix, sorted; sub-folders are not searched.

    Raises:
        InputError: when the folder is absent or may not be read.
    """
    names = folder_names(folder, "image")
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def folder_names(folder: Path, kind: str) -> list[str]:
    """Names of the entries of a folder.

    Args:
        folder: the folder.
        kind: what it holds, for the message: ``image`` or ``label``.

    Raises:
        InputError: when the folder is absent or may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder}: no such {kind} folder") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error


def _plain_jpeg(path: str | Path) -> tuple[int, int, str, int] | None:
    """Width, height, mode and orientation 1 of a complete JPEG file without EXIF; None for any other file.

    Most pictures of a large set are such files, and this takes a quarter of Pillow's time.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        head = os.read(descriptor, _HEAD)
        if not head.startswith(b"\xff\xd8"):
            return None
        os.lseek(descriptor, -2, os.SEEK_END)
        complete = os.read(descriptor, 2) == _ENDINGS["JPEG"]
    finally:
        os.close(descriptor)
    place = 2
    while complete and place + 10 <= len(head) and head[place] == 0xFF and head[place + 1] != _APP1:
        if head[place + 1] in _FRAMES:
            height, width, channels = _FRAME.unpack_from(head, place + 5)
            mode = _JPEG_MODES.get(channels)
            return (width, height, mode, 1) if mode and width and height else None
        place += 2 + int.from_bytes(head[place + 2 : place + 4], "big")
    return None


def _any_header(path: str | Path) -> tuple[int, int, str, int]:
    """Width, height, mode and orientation by Pillow, which decodes a file that may be cut off."""
    with open(path, "rb") as stream, Image.open(stream) as picture:
        facts = (*picture.size, picture.mode, _orientation(picture))
        if not _is_complete(stream, picture.format):
            picture.load()  # decides, because some complete files end in other bytes
    return facts


def _orientation(picture: Image.Image) -> int:
    # PNG and JPEG tell without decoding; asking a PNG for EXIF that it has not would decode it.
    if picture.format in _ENDINGS and "exif" not in picture.info:
        return 1
    return picture.getexif().get(ExifTags.Base.Orientation, 1)


def _is_complete(stream, kind: str | None) -> bool:
    """Whether a JPEG or PNG file has the end its format asks for; True for other formats."""
    if kind not in _ENDINGS:
        return True
    place = stream.tell()
    stream.seek(0, os.SEEK_END)
    stream.seek(max(0, stream.tell() - 16))
    complete = stream.read().endswith(_ENDINGS[kind])
    stream.seek(place)
    return complete


def _why_unreadable(path: str | Path) -> str:
    try:
        return "an empty file of 0 bytes" if os.stat(path).st_size == 0 else "not a readable image, or cut off"
    except OSError as error:
        return f"not a readable image ({error.strerror})"
