import numpy as np
import pytest
from PIL import Image

from duet.datasets.index import read_source
from duet.datasets.source import Source
from duet.datasets.yolo import read_class_names
from duet.errors import InputError

NAMES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for stem, size in (("b", (40, 20)), ("a", (10, 10))):
        Image.new("RGB", size).save(tmp_path / "images" / f"{stem}.png")
    (tmp_path / "labels" / "b.txt").write_text("1 0.5 0.5 0.5 0.2\n\n0 0.25 0.5 0.5 1.0\n")
    return tmp_path


def read(folder, images="images", labels="labels", split=None):
    return read_source(Source("yolo", folder / images, folder / labels, NAMES, split))


def test_boxes_are_pixels_and_labels_names(folder):
    first, second = read(folder)
    assert (first.path.name, first.labels, first.boxes_xyxy.shape) == ("a.png", (), (0, 4))
    assert second.size_hw == (20, 40)
    assert second.labels == ("dog", "cat")
    np.testing.assert_allclose(second.boxes_xyxy, [[10, 8, 30, 12], [0, 0, 20, 20]])
    assert second.lines[1].endswith("b.txt, line 3")


def test_a_split_file_chooses_by_stem_or_name(folder):
    split = folder / "split.txt"
    split.write_text("b\r\n")
    assert [image.path.name for image in read(folder, split=split)] == ["b.png"]
    split.write_text("images/a.png\n")
    assert [image.path.name for image in read(folder, split=split)] == ["a.png"]
    split.write_text("b\nzebra\n")
    with pytest.raises(InputError, match=r"split\.txt, line 2: image 'zebra'"):
        read(folder, split=split)
    split.write_text("\n")
    with pytest.raises(InputError, match="holds no image"):
        read(folder, split=split)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", r"line 1: class 2 does not exist, expected 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 does not exist"),
        ("0 0.5 0.5 -0.1 0.1", "positive width and height"),
        ("0 0.5 0.5 0 0.1", "positive width and height"),
        ("0 0.9 0.5 0.4 0.1", "reaches outside the image"),
        ("0 0.5 0.5 1.2 0.1", "reaches outside the image"),
        ("0 0.1 0.5 0.4 0.1", "reaches outside the image"),
        ("0 nan 0.5 0.4 0.1", "positive width and height"),
        ("0 0.5 0.5 0.1", "found 4 values"),
        ("cat 0.5 0.5 0.1 0.1", "expected an integer and four numbers"),
        ("0 0.5 0.5 0.1 x", "expected an integer and four numbers"),
    ],
)
def test_a_bad_line_is_named(folder, line, message):
    (folder / "labels" / "a.txt").write_text(line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        read(folder)
    assert "a.txt, line 1" in str(caught.value)


def test_an_unreadable_image_and_absent_folders_are_named(folder):
    (folder / "images" / "c.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"c\.jpg: not a readable image"):
        read(folder)
    with pytest.raises(InputError, match="no such image folder"):
        read(folder, images="x")
    with pytest.raises(InputError, match="no such label folder"):
        read(folder, labels="x")


def test_a_turned_picture_has_the_size_it_is_shown_with(folder):
    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "images" / "b.jpg", exif=exif)
    (folder / "images" / "b.png").unlink()
    _, second = read(folder)
    assert second.size_hw == (40, 20)
    np.testing.assert_allclose(second.boxes_xyxy[0], [5, 16, 15, 24])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_that_is_cut_off_is_named(folder, suffix):
    path = folder / "images" / f"c.{suffix}"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"c\.{suffix}: not a readable image, or cut off"):
        read(folder)


def test_a_whole_picture_with_bytes_behind_its_end_is_read(folder):
    with (folder / "images" / "a.png").open("ab") as stream:
        stream.write(b"a camera's own bytes")
    assert len(read(folder)) == 2


def test_text_that_is_not_utf8_and_doubled_stems_are_named(folder):
    (folder / "labels" / "a.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(InputError, match=r"a\.txt: not a UTF-8 text file"):
        read(folder)
    (folder / "labels" / "a.txt").unlink()
    Image.new("RGB", (9, 9)).save(folder / "images" / "b.jpg")
    with pytest.raises(InputError, match="has the same stem"):
        read(folder)


def test_class_names(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("cat\n dog \n\n")
    assert read_class_names(path) == NAMES
    path.write_text("cat\ncat\n")
    with pytest.raises(InputError, match="'cat' is named twice"):
        read_class_names(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="names no class"):
        read_class_names(path)
    with pytest.raises(InputError, match="no such file"):
        read_class_names(tmp_path / "absent.txt")
