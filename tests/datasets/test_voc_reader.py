import numpy as np
import pytest
from data_trees import picture, voc_tree, voc_xml

from duet.datasets.index import read_source
from duet.datasets.source import Source
from duet.datasets.voc import names_in_voc
from duet.errors import InputError

NAMES = ("cat", "dog")


@pytest.fixture
def folder(tmp_path):
    images = {"a": [], "b": [("dog", (11, 6, 30, 12)), ("cat", (1, 1, 40, 30), 1)]}
    return voc_tree(tmp_path / "voc", images, {"train": ["b"]})


def source(folder, names=NAMES, listed=None, **rename):
    return Source("voc", folder / "JPEGImages", folder / "Annotations", names, listed, rename)


def test_pixels_are_counted_from_zero_and_difficult_is_kept(folder):
    first, second = read_source(source(folder))
    assert (first.path.name, first.labels, first.boxes_xyxy.shape) == ("a.jpg", (), (0, 4))
    assert second.size_hw == (30, 40)
    assert second.labels == ("dog", "cat")
    np.testing.assert_array_equal(second.boxes_xyxy, [[10, 5, 30, 12], [0, 0, 40, 30]])
    assert second.difficult.tolist() == [False, True]
    assert second.crowd.tolist() == [False, False]
    assert second.lines == (f"{folder}/Annotations/b.xml, line 3", f"{folder}/Annotations/b.xml, line 8")


def test_a_split_list_chooses(folder):
    listed = folder / "ImageSets" / "Main" / "train.txt"
    assert [image.path.name for image in read_source(source(folder, listed=listed))] == ["b.jpg"]


def test_names_are_changed_or_left_out(folder):
    (image,) = read_source(source(folder, listed=folder / "ImageSets/Main/train.txt", dog="hound", cat=None))
    assert image.labels == ("hound",)
    assert names_in_voc([folder / "Annotations" / "b.xml"]) == ("cat", "dog")


def test_parts_of_an_object_are_not_objects(folder):
    inner = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    text = voc_xml([("cat", (1, 1, 9, 9))]).replace("</object>", inner + "</object>")
    (folder / "Annotations" / "b.xml").write_text(text)
    assert read_source(source(folder))[1].labels == ("cat",)


def test_one_pixel_over_the_edge_is_cut_and_more_refused(folder):
    path = folder / "Annotations" / "b.xml"
    path.write_text(voc_xml([("cat", (0, 0, 41, 31))]))
    np.testing.assert_array_equal(read_source(source(folder))[1].boxes_xyxy, [[0, 0, 40, 30]])
    path.write_text(voc_xml([("cat", (1, 1, 42, 30))]))
    with pytest.raises(InputError, match=r"b\.xml, line 3: the box reaches outside the image of 40 × 30"):
        read_source(source(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"b\.xml, line 1: an empty file"),
        ("<annotation>\n<object>\n", r"b\.xml, line 3: not XML"),
        ("<html/>", "expected an <annotation>, found <html>"),
        (voc_xml([("cat", (9, 1, 4, 9))]), "line 3: expected xmin ≤ xmax and ymin ≤ ymax, found xmin 9"),
        (voc_xml([("Cat", (1, 1, 4, 9))]), "line 3: class 'Cat' is not .* differs from 'cat' in case only"),
        (voc_xml([("cow", (1, 1, 4, 9))]), "class 'cow' is not among the domain's classes"),
        (voc_xml([("cat", (1, "x", 4, 9))]), "expected four numbers"),
        (voc_xml([("cat", (1, "nan", 4, 9))]), "expected a box with left < right"),
        (voc_xml([]).replace("</annotation>", "<object><name>cat</name></object></annotation>"), "no <bndbox>"),
        (voc_xml([], size=(30, 40)), "of an image of 30 × 40, the picture is shown with 40 × 30"),
    ],
)
def test_what_is_wrong_is_named(folder, text, message):
    (folder / "Annotations" / "b.xml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_source(source(folder))


def test_pictures_and_annotations_without_each_other(folder):
    picture(folder / "JPEGImages" / "c.jpg")
    with pytest.raises(InputError, match=r"c\.jpg: has no annotation file .*c\.xml"):
        read_source(source(folder))
    (folder / "JPEGImages" / "c.jpg").rename(folder / "c.jpg")
    (folder / "Annotations" / "d.xml").write_text(voc_xml([]))
    with pytest.raises(InputError, match=r"d\.xml: image 'd' is not in the image folder"):
        read_source(source(folder))


def test_lines_of_windows_and_a_tag_in_a_comment(folder):
    path = folder / "Annotations" / "b.xml"
    path.write_bytes(voc_xml([("dog", (1, 1, 9, 9))]).replace("\n", "\r\n").encode())
    assert read_source(source(folder))[1].lines[0].endswith("line 3")
    path.write_text(voc_xml([("dog", (1, 1, 9, 9))]).replace("<object>", "<!-- <object> -->" + "<object>", 1))
    assert read_source(source(folder))[1].labels == ("dog",)
