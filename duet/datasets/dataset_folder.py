"""Find out what a folder of data holds: its format, its class names and its splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from duet.datasets.coco import CocoFile
from duet.datasets.faults import refuse
from duet.datasets.images import LabelledImage
from duet.datasets.index import Progress, read_source
from duet.datasets.pictures import folder_names
from duet.datasets.readers import CLASSES_FILE
from duet.datasets.source import Format, Source
from duet.datasets.voc import SUFFIX as VOC_SUFFIX
from duet.datasets.voc import names_in_voc
from duet.datasets.yolo import checked_names, read_class_names, read_data_yaml
from duet.documents import MOST_JSON_BYTES, read_bytes
from duet.errors import InputError

SPLITS = ("train", "val", "trainval", "test")
ALL = "all"  # the split of a folder that names none

_EXPECTED = (
    "expected VOC (JPEGImages and Annotations), COCO (a .json file, or annotations/*.json) "
    "or YOLO (a data.yaml, or images, labels and classes.txt)"
)


@dataclass(frozen=True)
class DatasetFolder:
    """A data set on disk.

    Args:
        path: the folder, or the file that describes it.
        format: its format.
        names: its class names.
        splits: the source of each split, by name.
    """

    path: Path
    format: Format
    names: tuple[str, ...]
    splits: Mapping[str, Source] = field(default_factory=dict)

    def read(self, progress: Progress | None = None) -> dict[str, tuple[LabelledImage, ...]]:
        """The images of every split.

        Raises:
            InputError: naming file and line of the first error.
        """
        return {name: read_source(source, progress) for name, source in self.splits.items()}


def open_folder(path: Path, images: Path | None = None) -> DatasetFolder:
    """Recognise a data set by what lies in its folder.

    Args:
        path: a folder, a YOLO ``data.yaml``, or a COCO ``.json`` file.
        images: image folder of a COCO file; None looks for one beside it.

    Raises:
        InputError: when it is none of the three formats, or a part of it is missing.
    """
    path = Path(path)  # from Python it may come as text
    if path.suffix == ".json":
        return _coco(path, {_coco_split(path): path}, images)
    if path.suffix in (".yaml", ".yml"):
        return _yolo_file(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; {_EXPECTED}")
    if (path / "JPEGImages").is_dir() and (path / "Annotations").is_dir():
        return _voc(path)
    if (path / "data.yaml").is_file():
        return _yolo_file(path / "data.yaml")
    annotations = sorted((path / "annotations").glob("*.json"))
    if annotations:
        return _coco(path, {_coco_split(file): file for file in annotations}, images)
    if (path / CLASSES_FILE).is_file():
        return _yolo_folder(path)
    raise InputError(f"{path}: not a data set that is known; {_EXPECTED}")


def _voc(path: Path) -> DatasetFolder:
    images, labels = path / "JPEGImages", path / "Annotations"
    if (path / CLASSES_FILE).is_file():
        names = read_class_names(path / CLASSES_FILE)
    else:
        files = [labels / name for name in folder_names(labels, "label") if name.endswith(VOC_SUFFIX)]
        names = checked_names(names_in_voc(files), f"{labels}")
    lists = {name: path / "ImageSets" / "Main" / f"{name}.txt" for name in SPLITS}
    there = {name: file for name, file in lists.items() if file.is_file()} or {ALL: None}
    splits = {name: Source("voc", images, labels, names, file) for name, file in there.items()}
    return DatasetFolder(path, "voc", names, splits)


def _yolo_file(path: Path) -> DatasetFolder:
    names, splits = read_data_yaml(path)
    return DatasetFolder(path, "yolo", names, splits)


def _yolo_folder(path: Path) -> DatasetFolder:
    """Either ``images`` and ``labels`` with lists beside them, or one such pair in a folder for each split."""
    names = read_class_names(path / CLASSES_FILE)
    images, labels = path / "images", path / "labels"
    splits = {}
    for name in SPLITS:
        if (images / name).is_dir():
            splits[name] = Source("yolo", images / name, labels / name, names)
        elif (path / name / "images").is_dir():
            splits[name] = Source("yolo", path / name / "images", path / name / "labels", names)
        elif (path / f"{name}.txt").is_file():
            splits[name] = Source("yolo", images, labels, names, path / f"{name}.txt")
    return DatasetFolder(path, "yolo", names, splits or {ALL: Source("yolo", images, labels, names)})


def _coco(path: Path, files: Mapping[str, Path], images: Path | None) -> DatasetFolder:
    opened = {split: CocoFile(read_bytes(file, MOST_JSON_BYTES), file, refuse) for split, file in files.items()}
    names = tuple(dict.fromkeys(name for file in opened.values() for name in file.categories.values()))
    names = checked_names(names, str(path))
    splits = {}
    for split, file in files.items():
        folder = images or _coco_images(file, split, opened[split])
        lists = {name: file.parent / f"{name}.txt" for name in SPLITS} if len(files) == 1 else {}
        there = {name: listed for name, listed in lists.items() if listed.is_file()}
        splits.update({name: Source("coco", folder, file, names, listed) for name, listed in there.items()})
        if not there:
            splits[split] = Source("coco", folder, file, names)
    return DatasetFolder(path, "coco", names, splits)


def _coco_split(file: Path) -> str:
    """``train`` for ``instances_train2017.json``; all for a name that says nothing."""
    stem = file.stem.rpartition("_")[2].rstrip("0123456789")
    return stem if stem in SPLITS else ALL


def _coco_images(file: Path, split: str, opened: CocoFile) -> Path:
    first = next(iter(opened.images), None)
    base = file.parent.parent
    places = (base / file.stem.rpartition("_")[2], base / split / "images", base / "images", file.parent / "images")
    for folder in (*places, file.parent):
        if first is not None and (folder / first).exists():
            return folder
    raise InputError(f"{file}: its images are not beside it; name their folder with --images")
