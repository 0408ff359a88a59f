"""Write labelled images as a data set in one of the three formats.

Boxes come back equal to a millionth of a pixel. What a format cannot say is left out and counted: YOLO has no flags, so
difficult and crowd boxes are not written; VOC has no crowds, so they are written as difficult (both are ignored when a
detector is scored).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import yaml

from duet.datasets.columns import DIGITS
from duet.datasets.dataset_folder import ALL
from duet.datasets.images import LabelledImage
from duet.datasets.readers import CLASSES_FILE
from duet.datasets.source import Format
from duet.errors import InputError

Splits = Mapping[str, Sequence[LabelledImage]]


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        images: images, each counted once in every split.
        boxes: boxes written.
        left_out: flagged boxes that the format has no place for.
    """

    images: int
    boxes: int
    left_out: int


def write_dataset(splits: Splits, names: Sequence[str], folder: Path, format: Format, copy: bool = False) -> Written:
    """Write a data set; it appears complete or not at all.

    Args:
        splits: images by split.
        names: class names, in the order of their indices; further ones in the images are appended.
        folder: where to write; absent or empty.
        format: ``voc``, ``coco`` or ``yolo``.
        copy: copy the pictures instead of linking them.

    Raises:
        InputError: when the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: not empty; choose another folder")
    used = {label for images in splits.values() for image in images for label in image.labels}
    names = (*names, *sorted(used - set(names)))
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        written = _WRITERS[format](splits, names, part, copy)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return written


def _write_voc(splits: Splits, names: Sequence[str], folder: Path, copy: bool) -> Written:
    pictures, annotations, lists = folder / "JPEGImages", folder / "Annotations", folder / "ImageSets" / "Main"
    for path in (pictures, annotations, lists):
        path.mkdir(parents=True)
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    every = {image.path: image for images in splits.values() for image in images}
    file_names = _file_names(every)
    for path, image in every.items():
        _place(path, pictures / file_names[path], copy)
        stem = Path(file_names[path]).stem
        (annotations / f"{stem}.xml").write_text(_voc_text(image, file_names[path]), encoding="utf-8")
    for split, images in splits.items():
        stems = [Path(file_names[image.path]).stem for image in images]
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    return Written(len(every), sum(len(image.labels) for image in every.values()), 0)


def _voc_text(image: LabelledImage, name: str) -> str:
    height, width = image.size_hw
    lines = [
        "<annotation>",
        f"\t<filename>{escape(name)}</filename>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    for (left, top, right, bottom), label, flag in zip(image.boxes_xyxy.tolist(), image.labels, image.ignored.tolist()):
        edges = zip(("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, right, bottom))  # VOC counts from 1
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(label)}</name>",
            f"\t\t<difficult>{int(flag)}</difficult>",
            f"\t\t<bndbox>{''.join(f'<{edge}>{_number(value)}</{edge}>' for edge, value in edges)}</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _write_yolo(splits: Splits, names: Sequence[str], folder: Path, copy: bool) -> Written:
    index = {name: number for number, name in enumerate(names)}
    images_written = boxes = left_out = 0
    splits = _without_trainval(splits)
    for split, images in splits.items():
        below = "" if split == ALL else split
        pictures, labels = folder / "images" / below, folder / "labels" / below
        pictures.mkdir(parents=True)
        labels.mkdir(parents=True)
        file_names = _file_names([image.path for image in images])
        for image in images:
            kept = image.chosen(~image.ignored)
            name = file_names[image.path]
            _place(image.path, pictures / name, copy)
            (labels / f"{Path(name).stem}.txt").write_text(_yolo_text(kept, index), encoding="utf-8")
            images_written, boxes = images_written + 1, boxes + len(kept.labels)
            left_out += len(image.labels) - len(kept.labels)
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    places = {split: f"images/{split}" for split in splits if split != ALL}
    if places:
        layout = {"path": ".", **places, "names": dict(enumerate(names))}
        text = yaml.safe_dump(layout, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(text, encoding="utf-8")
    return Written(images_written, boxes, left_out)


def _yolo_text(image: LabelledImage, index: Mapping[str, int]) -> str:
    height, width = image.size_hw
    lines = []
    for (x1, y1, x2, y2), label in zip(image.boxes_xyxy.tolist(), image.labels):
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{index[label]} " + " ".join(f"{value:.14f}" for value in values) + "\n")
    return "".join(lines)


def _write_coco(splits: Splits, names: Sequence[str], folder: Path, copy: bool) -> Written:
    (folder / "annotations").mkdir()
    identity = {name: number for number, name in enumerate(names, start=1)}
    images_written = boxes = 0
    for split, images in _without_trainval(splits).items():
        pictures = folder / split / "images"
        pictures.mkdir(parents=True)
        file_names = _file_names([image.path for image in images])
        document = _coco_document(images, file_names, identity)
        for image in images:
            _place(image.path, pictures / file_names[image.path], copy)
        text = json.dumps(document, ensure_ascii=False)
        (folder / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
        images_written, boxes = images_written + len(images), boxes + len(document["annotations"])
    return Written(images_written, boxes, 0)


def _coco_document(
    images: Sequence[LabelledImage], file_names: Mapping[Path, str], identity: Mapping[str, int]
) -> dict[str, list[dict]]:
    annotations: list[dict] = []
    for number, image in enumerate(images, start=1):
        flags = zip(image.difficult.tolist(), image.crowd.tolist())
        for (x1, y1, x2, y2), label, (difficult, crowd) in zip(image.boxes_xyxy.tolist(), image.labels, flags):
            bbox = [round(value, DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": identity[label],
                    "bbox": bbox,
                    "area": round(bbox[2] * bbox[3], DIGITS),
                    "iscrowd": int(crowd),
                    **({"difficult": 1} if difficult else {}),
                }
            )
    return {
        "images": [
            {"id": number, "file_name": file_names[image.path], "height": image.size_hw[0], "width": image.size_hw[1]}
            for number, image in enumerate(images, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in identity.items()],
    }


def _without_trainval(splits: Splits) -> Splits:
    """VOC's trainval is train and val again; where it stands alone it is what is trained on."""
    if "train" in splits:
        return {name: images for name, images in splits.items() if name != "trainval"}
    return {"train" if name == "trainval" else name: images for name, images in splits.items()}


def _file_names(paths: Iterable[Path]) -> dict[Path, str]:
    """A file name for each path; the second of two with one stem gets a number."""
    taken: dict[str, int] = {}
    names = {}
    for path in paths:
        if path in names:
            continue
        taken[path.stem] = taken.get(path.stem, 0) + 1
        stem = path.stem if taken[path.stem] == 1 else f"{path.stem}~{taken[path.stem]}"
        names[path] = stem + path.suffix
    return names


def _place(source: Path, target: Path, copy: bool) -> None:
    if copy:
        shutil.copyfile(source, target)
    else:
        target.symlink_to(source.resolve())


def _number(value: float) -> str:
    return f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")


_WRITERS = {"voc": _write_voc, "yolo": _write_yolo, "coco": _write_coco}
