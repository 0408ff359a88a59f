import cv2
import numpy as np
import pytest
from PIL import Image

from duet.datasets.pictures import PictureFacts, ends_as_jpeg_should, picture_facts, read_bgr
from duet.errors import InputError


def save(path, mode, size=(40, 20), orientation=None, **options):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
        options["exif"] = exif
    Image.new(mode, size).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 9000}])
def test_plain_jpeg_files(tmp_path, mode, options):
    path = save(tmp_path / "a.jpg", mode, **options)
    assert picture_facts(path) == PictureFacts((20, 40), mode, 1)
    assert read_bgr(path).shape == (20, 40, 3)


@pytest.mark.parametrize(("orientation", "size_hw"), [(1, (20, 40)), (3, (20, 40)), (6, (40, 20)), (8, (40, 20))])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_size_is_that_of_the_shown_picture(tmp_path, orientation, size_hw, suffix):
    path = save(tmp_path / f"a.{suffix}", "RGB", orientation=orientation)
    assert picture_facts(path) == PictureFacts(size_hw, "RGB", orientation)
    assert read_bgr(path).shape[:2] == size_hw


def test_sixteen_bits_are_read_as_eight(tmp_path):
    values = np.full((20, 40), 0x8000, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert picture_facts(tmp_path / "a.png").mode == "I;16"
    assert np.unique(read_bgr(tmp_path / "a.png")).tolist() == [0x80]


def test_names_with_any_characters(tmp_path):
    path = save(tmp_path / "ein Büro 雪.jpg", "RGB")
    assert picture_facts(path).size_hw == read_bgr(path).shape[:2] == (20, 40)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "an empty file of 0 bytes"), (b"no picture", "not a readable image"), (b"\xff\xd8", "not a readable image")],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_files_that_are_no_pictures(tmp_path, data, message, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.{suffix}: {message}"):
        picture_facts(path)


def test_a_link_in_a_circle_and_an_absent_file(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: not a readable image \(Too many levels of symbolic links\)"):
        picture_facts(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"b\.jpg: not a readable image \(No such file"):
        picture_facts(tmp_path / "b.jpg")


def test_what_the_trainer_would_leave_out_is_refused(tmp_path):
    with pytest.raises(InputError, match="40 × 9 pixels, expected at least 10"):
        picture_facts(save(tmp_path / "a.jpg", "RGB", size=(40, 9)))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_that_is_cut_off(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="or cut off"):
        picture_facts(path)


def test_the_end_of_a_jpeg_file(tmp_path):
    path = save(tmp_path / "a.jpg", "RGB")
    assert ends_as_jpeg_should(path)
    path.write_bytes(path.read_bytes() + b"a camera's own bytes")
    assert not ends_as_jpeg_should(path)
    assert picture_facts(path).size_hw == (20, 40)


def test_pixels_are_those_of_opencv(tmp_path):
    path = tmp_path / "a.jpg"
    Image.effect_noise((40, 20), 50).convert("RGB").save(path)
    np.testing.assert_array_equal(read_bgr(path), cv2.imread(str(path)))
    with pytest.raises(InputError, match=r"b\.jpg"):
        read_bgr(tmp_path / "b.jpg")
