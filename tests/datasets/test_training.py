import numpy as np
import pytest
import yaml
from PIL import Image
from ultralytics.data.utils import check_image

from duet.datasets.images import LabelledImage
from duet.datasets.training import colour_statistics, write_training_set
from duet.errors import InputError


def image(folder, name, labels, colour=(255, 0, 0)):
    path = folder / name
    Image.new("RGB", (20, 10), colour).save(path)
    boxes = np.array([[2.0, 1.0, 12.0, 6.0]] * len(labels)).reshape(-1, 4)
    lines = tuple(f"{name}.txt, line {number + 1}" for number in range(len(labels)))
    return LabelledImage(path, (10, 20), boxes, tuple(labels), lines)


@pytest.fixture
def images(tmp_path):
    (tmp_path / "source").mkdir()
    rows = [("a.png", ["cat", "bird"]), ("b.png", ["dog"]), ("c.png", [])]
    return [image(tmp_path / "source", name, labels) for name, labels in rows]


def test_labels_are_filtered_and_remapped_by_name(tmp_path, images):
    made = write_training_set(images, ["bird"], ["dog", "bird"], tmp_path / "set", other_labels="drop")
    assert (made.images, made.boxes, made.dropped_boxes, made.dropped_images) == (3, 1, 2, 0)
    lines = [path.read_text() for path in sorted((tmp_path / "set" / "labels").iterdir())]
    assert lines == ["1 0.35000000 0.35000000 0.50000000 0.50000000\n", "", ""]
    assert yaml.safe_load(made.data.read_text())["names"] == {0: "dog", 1: "bird"}
    links = sorted((tmp_path / "set" / "images").iterdir())
    assert [link.resolve().name for link in links] == ["a.png", "b.png", "c.png"]


def test_images_without_a_label_can_be_left_out(tmp_path, images):
    made = write_training_set(images, ["bird"], ["bird"], tmp_path / "set", "drop", unlabelled_images="drop")
    assert (made.images, made.dropped_images) == (1, 2)


def test_a_label_of_another_class_is_refused_by_default(tmp_path, images):
    with pytest.raises(InputError, match=r"a\.png\.txt, line 2: class 'bird' is not among the task's classes"):
        write_training_set(images, ["cat", "dog"], ["cat", "dog"], tmp_path / "set")


def test_a_set_without_a_single_box_is_refused(tmp_path, images):
    with pytest.raises(InputError, match="no box of the classes zebra"):
        write_training_set(images, ["zebra"], ["zebra"], tmp_path / "set", "drop")


def test_an_old_set_is_replaced(tmp_path, images):
    write_training_set(images, ["dog"], ["dog"], tmp_path / "set", "drop")
    made = write_training_set(images[:2], ["dog"], ["dog"], tmp_path / "set", "drop")
    assert len(list((tmp_path / "set" / "images").iterdir())) == made.images == 2


def test_colour_statistics_by_hand(tmp_path):
    pair = [image(tmp_path, "x.png", [], (255, 0, 51)), image(tmp_path, "y.png", [], (0, 0, 51))]
    found = colour_statistics(pair)
    assert found.mean == pytest.approx((0.5, 0.0, 0.2))
    assert found.std == pytest.approx((0.5, 0.001, 0.001), abs=1e-6)


def test_a_picture_the_trainer_would_rewrite_is_copied_and_mended(tmp_path):
    path = tmp_path / "a.jpg"
    one = image(tmp_path, "a.jpg", ["dog"])
    path.write_bytes(path.read_bytes() + b"a camera's own bytes")
    before = path.read_bytes()
    write_training_set([one], ["dog"], ["dog"], tmp_path / "set")
    (placed,) = (tmp_path / "set" / "images").iterdir()
    assert not placed.is_symlink()
    assert placed.read_bytes() == before + b"\xff\xd9"
    assert check_image(str(placed)) == ("", (10, 20))
    assert "restored" in check_image(str(path))[0]  # what would have happened to the user's own file
