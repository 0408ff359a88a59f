import os

import numpy as np
import pytest
from data_trees import picture, voc_tree, voc_xml

from duet.datasets import index, readers
from duet.datasets.index import read_source
from duet.datasets.source import Source
from duet.errors import InputError


@pytest.fixture
def source(tmp_path):
    images = {"a": [], "b": [("dog", (11, 6, 30, 12)), ("cat", (1, 1, 40, 30), 1)], "c": [("cat", (2, 3, 4, 5))]}
    folder = voc_tree(tmp_path / "voc", images)
    return Source("voc", folder / "JPEGImages", folder / "Annotations", ("cat", "dog"))


@pytest.fixture
def parsed(monkeypatch):
    """Counts the label files that are parsed."""
    seen = []
    parse = readers.parse_voc

    def counting(data, file, *rest):
        seen.append(os.path.basename(file))
        return parse(data, file, *rest)

    monkeypatch.setattr(readers, "parse_voc", counting)
    return seen


def same(first, second):
    for one, other in zip(first, second, strict=True):
        assert (one.path, one.size_hw, one.labels, one.lines) == (other.path, other.size_hw, other.labels, other.lines)
        for name in ("boxes_xyxy", "difficult", "crowd"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_second_time_nothing_is_parsed(source, parsed):
    first = read_source(source)
    assert parsed == ["a.xml", "b.xml", "c.xml"]
    same(first, read_source(source))
    assert len(parsed) == 3


def test_other_label_bytes_are_read_again_even_with_the_same_time_and_length(source, parsed):
    read_source(source)
    path = source.labels / "c.xml"
    facts = path.stat()
    path.write_text(voc_xml([("dog", (2, 3, 4, 5))]))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    assert read_source(source)[2].labels == ("dog",)


def test_a_changed_image_is_looked_at_again(source, parsed):
    read_source(source)
    picture(source.images / "c.jpg", size=(80, 60))
    with pytest.raises(InputError, match="the picture is shown with 80 × 60"):
        read_source(source)


def test_other_names_are_another_index(source):
    read_source(source)
    with pytest.raises(InputError, match="class 'dog'"):
        read_source(Source("voc", source.images, source.labels, ("cat",)))


def test_a_damaged_index_is_made_anew(source, parsed, cache):
    first = read_source(source)
    for path in (cache / "indexes").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    same(first, read_source(source))
    assert len(parsed) == 6


def test_nothing_is_kept_of_a_faulty_split(source, parsed):
    (source.labels / "c.xml").write_text("")
    for _ in range(2):
        with pytest.raises(InputError, match=r"c\.xml, line 1: an empty file"):
            read_source(source)
    assert len(parsed) == 6


def test_progress_is_told_while_an_index_is_made(source):
    told = []
    read_source(source, lambda done, total: told.append((done, total)))
    read_source(source, lambda done, total: told.append("again"))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_several_processes_read_the_same_and_name_the_first_fault(source, monkeypatch, cache):
    alone = read_source(source)
    for path in (cache / "indexes").iterdir():
        path.unlink()
    monkeypatch.setattr(index, "PART", 1)
    monkeypatch.setattr(index, "_cores", lambda: 2)
    told = []
    same(alone, read_source(source, lambda done, total: told.append((done, total))))
    assert told == [(1, 3), (2, 3), (3, 3)]
    (source.labels / "b.xml").write_text("")
    (source.labels / "c.xml").write_text("")
    with pytest.raises(InputError, match=r"b\.xml, line 1: an empty file"):
        read_source(source)
