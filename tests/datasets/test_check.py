"""`check` finds every planted fault, and reading for training works or refuses with the same sentence."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from data_trees import picture, voc_tree, voc_xml
from PIL import Image
from ultralytics.data.utils import check_image

from duet.datasets.check import check_series
from duet.datasets.domain import open_domains
from duet.datasets.faults import Level
from duet.datasets.pictures import read_bgr
from duet.datasets.series_file import SeriesFile
from duet.datasets.training import colour_statistics, write_training_set
from duet.errors import InputError

CAT, DOG = ("cat", (3, 3, 20, 20)), ("dog", (5, 5, 30, 25))
ERROR, WARNING, NOTE = Level.ERROR, Level.WARNING, Level.NOTE


class Tree:
    """A two-domain series on disk; its first domain is where faults are planted, image 2 of it above all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, item in (("day", CAT), ("night", DOG)):
            images = {str(number): [item] for number in range(1, 7)}
            splits = {"train": ["1", "2", "3", "4"], "test": ["5", "6"]}
            voc_tree(folder / name, images, splits)
        self.day = folder / "day"
        self.image = self.day / "JPEGImages" / "2.jpg"
        self.xml = self.day / "Annotations" / "2.xml"
        self.train = self.day / "ImageSets" / "Main" / "train.txt"
        self.values = {
            "name": "planted",
            "domains": {
                name: {
                    "format": "voc",
                    "classes": ["cat", "dog"],
                    "train": {"folder": name, "split": "train", "count": 4},
                    "test": {"folder": name, "split": "test"},
                }
                for name in ("day", "night")
            },
            "tasks": [{"domain": "day", "classes": ["cat"]}, {"domain": "night", "classes": ["dog"]}],
        }

    def write(self, box=None, name="cat", text=None) -> None:
        """Another annotation of image 2."""
        self.xml.write_text(voc_xml([(name, box or CAT[1])]) if text is None else text)

    def source(self) -> SeriesFile:
        path = self.folder / "series.yaml"
        path.write_text(yaml.safe_dump(self.values, allow_unicode=True))
        return SeriesFile(path)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "data")


def missing_image(tree):
    tree.image.unlink()


def empty_xml(tree):
    tree.xml.write_text("")


def edges_exchanged(tree):
    tree.write((20, 3, 3, 20))


def box_outside(tree):
    tree.write((3, 3, 60, 20))


def unknown_class(tree):
    tree.write(name="zebra")


def other_case(tree):
    tree.write(name="Cat")


def missing_split_file(tree):
    tree.train.unlink()


def split_names_an_absent_image(tree):
    tree.train.write_text("1\n2\n9\n3\n4\n")


def duplicate_across_splits(tree):
    (tree.day / "JPEGImages" / "5.jpg").write_bytes(tree.image.read_bytes())


def no_picture(tree):
    tree.image.write_bytes(b"<html>not found</html>")


def zero_bytes(tree):
    tree.image.write_bytes(b"")


def one_pixel(tree):
    tree.write((7, 7, 7, 7))


def sixteen_bits(tree):
    pixels = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(np.uint16)
    Image.fromarray(pixels).save(tree.image.with_suffix(".png"))
    tree.image.unlink()


def grey(tree):
    Image.effect_noise((40, 30), 60).save(tree.image)


def printing_colours(tree):
    Image.effect_noise((40, 30), 60).convert("CMYK").save(tree.image)


def turned_by_exif(tree):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((30, 40), 60).save(tree.image, exif=exif)  # shown as 40 × 30, as the annotation says


def turned_by_exif_but_not_in_the_annotation(tree):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((40, 30), 60).save(tree.image, exif=exif)


def spaces_and_other_letters(tree):
    tree.day.rename(tree.folder / "helle Straße 雪")
    for split in ("train", "test"):
        tree.values["domains"]["day"][split]["folder"] = "helle Straße 雪"


def link_in_a_circle(tree):
    tree.image.unlink()
    tree.image.symlink_to(tree.image)


def folder_link_in_a_circle(tree):
    (tree.day / "JPEGImages").rename(tree.day / "elsewhere")
    (tree.day / "JPEGImages").symlink_to(tree.day / "JPEGImages")


def folder_link_to_its_parent(tree):
    (tree.day / "JPEGImages" / "loop").symlink_to(tree.day)


def unreadable_folder(tree):
    (tree.day / "Annotations").chmod(0)


def windows_line_ends(tree):
    tree.train.write_bytes(tree.train.read_bytes().replace(b"\n", b"\r\n"))
    tree.xml.write_bytes(tree.xml.read_bytes().replace(b"\n", b"\r\n"))


# The fault, its level, where it is, and what is said of it.
FAULTS = [
    (missing_image, ERROR, "day/ImageSets/Main/train.txt, line 2", "image '2' is not in the image folder"),
    (empty_xml, ERROR, "day/Annotations/2.xml, line 1", "an empty file"),
    (edges_exchanged, ERROR, "day/Annotations/2.xml, line 3", "expected xmin ≤ xmax"),
    (box_outside, ERROR, "day/Annotations/2.xml, line 3", "reaches outside the image of 40 × 30"),
    (unknown_class, ERROR, "day/Annotations/2.xml, line 3", "class 'zebra' is not among the domain's classes"),
    (other_case, ERROR, "day/Annotations/2.xml, line 3", "differs from 'cat' in case only"),
    (missing_split_file, ERROR, "day/ImageSets/Main/train.txt", "no such split file"),
    (split_names_an_absent_image, ERROR, "day/ImageSets/Main/train.txt, line 3", "image '9' is not in"),
    (duplicate_across_splits, WARNING, "day/JPEGImages/5.jpg", "in day test, is the same picture as"),
    (no_picture, ERROR, "day/JPEGImages/2.jpg", "not a readable image"),
    (zero_bytes, ERROR, "day/JPEGImages/2.jpg", "an empty file of 0 bytes"),
    (one_pixel, WARNING, "day/Annotations/2.xml, line 3", "a box of 1 × 1 pixels"),
    (sixteen_bits, NOTE, "day/JPEGImages/2.png", "16 bits or more per channel"),
    (grey, NOTE, "day/JPEGImages/2.jpg", "a grey picture"),
    (printing_colours, NOTE, "day/JPEGImages/2.jpg", "printing colours"),
    (turned_by_exif, NOTE, "day/JPEGImages/2.jpg", "turned by its EXIF orientation 6"),
    (turned_by_exif_but_not_in_the_annotation, ERROR, "day/Annotations/2.xml", "its EXIF orientation turns it"),
    (spaces_and_other_letters, NOTE, "helle Straße 雪/JPEGImages/2.jpg", "letters beyond ASCII in the path"),
    (link_in_a_circle, ERROR, "day/JPEGImages/2.jpg", "Too many levels of symbolic links"),
    (folder_link_in_a_circle, ERROR, "day/JPEGImages", "Too many levels of symbolic links"),
    (folder_link_to_its_parent, NOTE, "day/JPEGImages/loop", "a link that leads in a circle"),
    (unreadable_folder, ERROR, "day/Annotations", "cannot be read (Permission denied)"),
    (windows_line_ends, NOTE, "day/ImageSets/Main/train.txt, line 1", "Windows line ends"),
    (windows_line_ends, NOTE, "day/Annotations/2.xml, line 1", "Windows line ends"),
]


def refuse_as_a_plain_user_would_be(monkeypatch, folder):
    """The administrator may read every folder."""
    scandir = os.scandir

    def guarded(path="."):
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)


@pytest.mark.parametrize(
    ("plant", "level", "where", "what"), FAULTS, ids=[f"{f[0].__name__}-{i}" for i, f in enumerate(FAULTS)]
)
def test_a_planted_fault_is_found_and_training_works_or_refuses(tree, tmp_path, monkeypatch, plant, level, where, what):
    plant(tree)
    if plant is unreadable_folder and os.geteuid() == 0:
        refuse_as_a_plain_user_would_be(monkeypatch, tree.day / "Annotations")
    source = tree.source()
    result = check_series(source)
    found = [fault for fault in result.faults if fault.where.endswith(where) and what in fault.what]
    assert [fault.level for fault in found] == [level], result.faults
    if level is ERROR:
        with pytest.raises(InputError) as refused:
            open_domains(source)["day"].train()
        assert str(refused.value) == found[0].sentence
    else:
        assert result.errors == ()
        images = open_domains(source)["day"].train()
        made = write_training_set(images, ["cat"], ["cat"], tmp_path / "set")
        assert (made.images, made.boxes) == (4, 4)
        for path in (tmp_path / "set" / "images").iterdir():
            assert read_bgr(path).shape == (30, 40, 3)
            assert check_image(str(path)) == ("", (30, 40))  # the trainer neither leaves it out nor rewrites it
        assert all(0 < value < 1 for value in colour_statistics(images).mean)
    if plant is unreadable_folder:
        (tree.day / "Annotations").chmod(0o755)


def test_a_sound_tree_has_no_fault_and_is_counted(tree):
    tree.xml.write_text(voc_xml([CAT, (*CAT, 1)]))
    result = check_series(tree.source())
    assert result.faults == ()
    counts = {(item.domain, item.split): (item.images, dict(item.boxes), dict(item.ignored)) for item in result.counts}
    assert counts == {
        ("day", "train"): (4, {"cat": 4}, {"cat": 1}),
        ("day", "test"): (2, {"cat": 2}, {}),
        ("night", "train"): (4, {"dog": 4}, {}),
        ("night", "test"): (2, {"dog": 2}, {}),
    }


def test_every_fault_of_a_tree_is_listed_errors_first(tree):
    one_pixel(tree)
    grey(tree)
    (tree.day / "Annotations" / "1.xml").write_text("")
    (tree.day / "Annotations" / "3.xml").write_text("<")
    (tree.folder / "night" / "JPEGImages" / "1.jpg").write_bytes(b"")
    levels = [fault.level for fault in check_series(tree.source()).faults]
    assert levels.count(ERROR) == 3
    assert levels == sorted(levels, key=[ERROR, WARNING, NOTE].index)


def test_pictures_of_one_domain_in_another_unless_they_are_drawn_anew(tree):
    (tree.folder / "night" / "JPEGImages" / "5.jpg").write_bytes(tree.image.read_bytes())
    (fault,) = check_series(tree.source()).faults
    assert fault.level is WARNING
    assert fault.where.endswith("night/JPEGImages/5.jpg")
    assert "in night test, is the same picture as" in fault.what and fault.what.endswith("in day train")
    tree.values["domains"]["night"]["shift"] = "comic"
    assert check_series(tree.source()).faults == ()


def test_labels_of_other_tasks_counts_and_classes_without_a_box(tree):
    tree.write(name="dog")
    tree.values["domains"]["night"]["train"]["count"] = 5
    tree.values["tasks"][1]["classes"] = ["dog", "cow"]
    tree.values["domains"]["night"]["classes"].append("cow")
    faults = check_series(tree.source()).faults
    sentences = [fault.sentence for fault in faults]
    assert "2.xml, line 3: class 'dog' is not among the task's classes (cat); other_labels: drop" in sentences[0]
    assert any(text.endswith("train.txt: 4 images, the series expects 5") for text in sentences)
    assert any("domains.night: no box of class 'cow' in the test images" in text for text in sentences)
    tree.values["other_labels"] = "drop"
    assert all(fault.level is WARNING for fault in check_series(tree.source()).faults)
    tree.values["tasks"][1]["classes"] = ["cow"]
    (fault,) = check_series(tree.source()).errors
    assert fault.what == "its training split has no box of the classes cow"
    tree.values["other_labels"] = "error"  # the labels that may stand in the way are named all the same
    assert any("is not among the task's classes (cow)" in fault.what for fault in check_series(tree.source()).errors)


def test_a_series_of_generated_scenes_has_no_files(tmp_path):
    from duet.datasets.series_file import find_series

    with pytest.raises(InputError, match="nothing to check"):
        check_series(find_series("demo"))


def official_tree(folder: Path, source: SeriesFile) -> None:
    """Tiny pictures with the right file names, three per list."""
    seed = 0
    for section in source.section.domains.values():
        for split in (section.train, section.test):
            for part in split:
                names = [f"{Path(part.list).stem}_{number:06d}" for number in range(3)]
                (folder / part.list).parent.mkdir(parents=True, exist_ok=True)
                (folder / part.list).write_text("\n".join(names) + "\n")
                (folder / part.labels).mkdir(parents=True, exist_ok=True)
                for name in names:
                    seed += 1
                    picture(folder / part.images / f"{name}.jpg", seed=seed)
                    boxes = [(label, (2, 2, 12, 12)) for label in section.classes]
                    (folder / part.labels / f"{name}.xml").write_text(voc_xml(boxes))


@pytest.mark.parametrize("name", ["pascal-voc-clipart", "pascal-four", "weather-three", "weather-ds-nr"])
def test_a_tree_with_the_official_layout_passes(name, tmp_path):
    from duet.datasets.series_file import find_series

    source = find_series(name, tmp_path)
    official_tree(tmp_path, source)
    result = check_series(source)
    assert result.errors == ()
    assert all("3 images, the series expects" in fault.what for fault in result.faults)
    images = open_domains(source)[source.series.domains[0]].train()
    assert {label for image in images for label in image.labels} >= set(source.series.tasks[0].classes)
