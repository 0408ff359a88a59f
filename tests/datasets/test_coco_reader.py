import json

import numpy as np
import pytest
from data_trees import coco_tree

from duet.datasets.index import read_source
from duet.datasets.source import Source
from duet.errors import InputError

NAMES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path):
    images = {"b.jpg": [(18, [10, 5, 20, 7], 0), (3, [0, 0, 40, 30], 1)], "sub/a.jpg": []}
    return coco_tree(tmp_path / "coco", images, {3: "cat", 18: "dog"})


def read(folder, listed=None, **rename):
    return read_source(Source("coco", folder / "images", folder / "instances.json", NAMES, listed, rename))


def change(folder, key, index, **values):
    document = json.loads((folder / "instances.json").read_text())
    document[key][index].update(values)
    (folder / "instances.json").write_text(json.dumps(document))


def test_boxes_crowds_and_images_in_sub_folders(folder):
    first, second = read(folder)
    assert (first.path.name, second.path.name) == ("b.jpg", "a.jpg")
    assert first.labels == ("dog", "cat")
    np.testing.assert_array_equal(first.boxes_xyxy, [[10, 5, 30, 12], [0, 0, 40, 30]])
    assert first.crowd.tolist() == [False, True]
    assert first.ignored.tolist() == [False, True]
    assert first.lines[1] == f"{folder}/instances.json, annotation 8"
    assert second.labels == ()


def test_a_list_and_other_names(folder):
    (folder / "list.txt").write_text("b.jpg\r\n")
    (image,) = read(folder, folder / "list.txt", dog="hound")
    assert image.labels == ("hound", "cat")


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("annotations", {"category_id": 9}, "annotation 7: category_id 9 is no category"),
        ("annotations", {"image_id": 9}, "annotation 7: image_id 9 is no image"),
        ("annotations", {"bbox": [1, 2, 3]}, "annotation 7: expected a bbox of four numbers"),
        ("annotations", {"bbox": [1, 2, 0, 3]}, "annotation 7: expected a box with left < right"),
        ("annotations", {"bbox": [30, 2, 20, 3]}, "annotation 7: the box reaches outside"),
        ("images", {"width": 50}, "image 1: stated with 50 × 30 pixels"),
        ("images", {"file_name": "z.jpg"}, r"instances\.json: image 'z\.jpg' is not in the image folder"),
        ("images", {"id": 2}, "image 2: its file_name or id is absent or double"),
        ("categories", {"name": "Cat"}, "class 'Cat' is not .* in case only"),
        ("categories", {"id": 18}, "category id 18 is no id, or given twice"),
    ],
)
def test_what_is_wrong_is_named(folder, key, values, message):
    change(folder, key, 0, **values)
    with pytest.raises(InputError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{\n", "line 2: not JSON"), ("[]", "key 'images' is missing"), ('{"images": [3]}', "no list of objects")],
)
def test_a_file_that_is_no_detection_file(folder, text, message):
    (folder / "instances.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read(folder)


def test_an_absent_file(folder):
    (folder / "instances.json").unlink()
    with pytest.raises(InputError, match=r"instances\.json: cannot be read"):
        read(folder)
