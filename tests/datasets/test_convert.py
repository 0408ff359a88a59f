import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from data_trees import picture, voc_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from duet.datasets.convert import write_dataset
from duet.datasets.dataset_folder import open_folder
from duet.datasets.images import LabelledImage
from duet.errors import InputError

NAMES = ("cat", "dog", "traffic light", "Füßgänger & <co>")
FORMATS = ("voc", "coco", "yolo")


def image(path, boxes, labels, difficult=(), crowd=(), size_hw=(30, 40)):
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    flags = [np.array(list(values) or [False] * len(labels), dtype=bool) for values in (difficult, crowd)]
    return LabelledImage(path, size_hw, array, tuple(labels), ("x",) * len(labels), *flags)


def hundredths(low, high):
    return st.integers(round(low * 100), round(high * 100)).map(lambda value: value / 100)


@st.composite
def labelled(draw):
    """Boxes in hundredths of a pixel anywhere in a picture of 40 × 30, with flags."""
    boxes, labels, difficult, crowd = [], [], [], []
    for _ in range(draw(st.integers(0, 5))):
        left, top = draw(hundredths(0, 39)), draw(hundredths(0, 29))
        boxes.append((left, top, draw(hundredths(left + 0.01, 40)), draw(hundredths(top + 0.01, 30))))
        labels.append(draw(st.sampled_from(NAMES)))
        difficult.append(draw(st.booleans()))
        crowd.append(draw(st.booleans()))
    return boxes, labels, difficult, crowd


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "a.jpg", folder / "b.one.png", folder / "other" / "a.jpg"]
    for seed, path in enumerate(paths):
        picture(path, seed=seed)
    return paths


def read_back(splits, folder, format):
    write_dataset(splits, NAMES, folder, format)
    return open_folder(folder).read()


def same_boxes(found, expected):
    assert {name: len(part) for name, part in found.items()} == {name: len(part) for name, part in expected.items()}
    for name, part in expected.items():
        by_pixels = {item.path.resolve().read_bytes(): item for item in found[name]}
        for item in part:
            other = by_pixels[item.path.read_bytes()]
            assert other.size_hw == item.size_hw
            assert other.labels == item.labels
            np.testing.assert_array_equal(other.boxes_xyxy, item.boxes_xyxy)


@settings(max_examples=12, deadline=None)
@given(contents=st.lists(labelled(), min_size=3, max_size=3), order=st.permutations(FORMATS))
def test_boxes_go_through_all_formats_and_come_back_equal(pictures, contents, order):
    images = [image(path, *content) for path, content in zip(pictures, contents)]
    splits = {"train": images[:2], "test": images[2:]}
    plain = {name: [item.chosen(~item.ignored) for item in part] for name, part in splits.items()}
    with tempfile.TemporaryDirectory() as folder:
        found = splits
        for number, format in enumerate(order):
            found = read_back(found, Path(folder) / f"{number}", format)
            kept = {name: [item.chosen(~item.ignored) for item in part] for name, part in found.items()}
            same_boxes(kept, plain)


@settings(max_examples=8, deadline=None)
@given(content=labelled())
def test_coco_keeps_both_flags_and_voc_keeps_that_a_box_is_ignored(pictures, content):
    item = image(pictures[0], *content)
    with tempfile.TemporaryDirectory() as folder:
        (coco,) = read_back({"train": [item]}, Path(folder) / "c", "coco")["train"]
        (voc,) = read_back({"train": [item]}, Path(folder) / "v", "voc")["train"]
    np.testing.assert_array_equal(coco.difficult, item.difficult)
    np.testing.assert_array_equal(coco.crowd, item.crowd)
    np.testing.assert_array_equal(voc.difficult, item.ignored)


@pytest.mark.parametrize("format", FORMATS)
def test_pictures_are_linked_or_copied_and_stems_do_not_collide(pictures, tmp_path, format):
    images = [image(path, [(1, 2, 3, 4)], ["dog"]) for path in pictures]
    write_dataset({"train": images}, NAMES, tmp_path / "linked", format)
    write_dataset({"train": images}, NAMES, tmp_path / "copied", format, copy=True)
    for name, linked in (("linked", True), ("copied", False)):
        (part,) = open_folder(tmp_path / name).read().values()
        assert sorted(item.path.name for item in part) == ["a.jpg", "a~2.jpg", "b.one.png"]
        assert all(item.path.is_symlink() == linked for item in part)
        same_boxes({"train": part}, {"train": images})


def test_yolo_counts_the_flagged_boxes_it_cannot_hold(pictures, tmp_path):
    item = image(pictures[0], [(1, 2, 3, 4)] * 3, ["dog"] * 3, [True, False, False], [False, True, False])
    written = write_dataset({"train": [item]}, NAMES, tmp_path / "y", "yolo")
    assert (written.images, written.boxes, written.left_out) == (1, 1, 2)


def test_trainval_is_not_written_twice_and_one_split_needs_no_name(pictures, tmp_path):
    items = [image(path, [(1, 2, 3, 4)], ["dog"]) for path in pictures]
    both = {"train": items[:1], "val": items[1:2], "trainval": items[:2], "test": items[2:]}
    for format in ("yolo", "coco"):
        assert set(read_back(both, tmp_path / format, format)) == {"train", "val", "test"}
    assert set(read_back({"trainval": items[:2], "test": items[2:]}, tmp_path / "two", "yolo")) == {"train", "test"}
    for format in FORMATS:
        assert [*read_back({"all": items}, tmp_path / f"all-{format}", format)] == ["all"]


def test_names_that_were_not_announced_are_appended(pictures, tmp_path):
    write_dataset({"train": [image(pictures[0], [(1, 2, 3, 4)], ["zebra"])]}, ("cat",), tmp_path / "y", "yolo")
    assert open_folder(tmp_path / "y").names == ("cat", "zebra")


def test_what_is_there_is_not_overwritten(pictures, tmp_path):
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "mine.txt").touch()
    with pytest.raises(InputError, match="not empty; choose another folder"):
        write_dataset({"train": [image(pictures[0], [], [])]}, NAMES, tmp_path / "y", "yolo")
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    gone = image(tmp_path / "gone.jpg", [], [])
    with pytest.raises(OSError, match="gone"):
        write_dataset({"train": [gone]}, NAMES, tmp_path / "y", "yolo", copy=True)
    assert list(tmp_path.iterdir()) == []


def test_layouts_are_recognised(tmp_path):
    voc_tree(tmp_path / "voc", {"1": [("dog", (1, 1, 9, 9))], "2": [("cat", (1, 1, 9, 9))]}, {"train": ["1"]})
    found = open_folder(tmp_path / "voc")
    assert (found.format, found.names, list(found.splits)) == ("voc", ("cat", "dog"), ["train"])
    for part in ("train", "val"):
        picture(tmp_path / "yolo" / part / "images" / "1.jpg")
        (tmp_path / "yolo" / part / "labels").mkdir()
    (tmp_path / "yolo" / "classes.txt").write_text("cat\n")
    assert list(open_folder(tmp_path / "yolo").splits) == ["train", "val"]
    picture(tmp_path / "coco" / "train2017" / "1.jpg")
    (tmp_path / "coco" / "annotations").mkdir()
    entry = {"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}
    document = {"images": [entry], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    file = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(document))
    for place in (tmp_path / "coco", file):
        found = open_folder(place)
        assert (found.format, list(found.splits)) == ("coco", ["train"])
        assert found.splits["train"].images == tmp_path / "coco" / "train2017"
    (tmp_path / "coco" / "train2017").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="name their folder with --images"):
        open_folder(file)
    assert open_folder(file, tmp_path / "elsewhere").splits["train"].images == tmp_path / "elsewhere"
    with pytest.raises(InputError, match="not a data set that is known; expected VOC"):
        open_folder(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_folder(tmp_path / "nowhere")
