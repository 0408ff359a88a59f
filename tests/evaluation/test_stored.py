"""Stored detections come back as they were; damaged files are named."""

import numpy as np
import pytest

from duet.detectors.base import Detections
from duet.errors import InputError
from duet.evaluation.stored import restore_detections, store_detections

NONE = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ())
ONE = Detections(np.asarray([[9, 9, 10, 11]], np.float32), np.asarray([0.5], np.float32), ("dog",))
TWO = Detections(
    np.asarray([[1, 2, 3, 4], [5, 6, 7.5, 8]], np.float32), np.asarray([0.9, 0.1], np.float32), ("cat", "dog")
)


def same(found: Detections, wanted: Detections) -> bool:
    equal = np.array_equal(found.boxes_xyxy, wanted.boxes_xyxy) and np.array_equal(found.scores, wanted.scores)
    return equal and found.labels == wanted.labels


def test_detections_come_back_image_by_image(tmp_path):
    stored = {"joint/ä b": [TWO, NONE, ONE, NONE], "night": [TWO], "empty": [NONE, NONE], "no images": []}
    store_detections(stored, ["dog", "cat"], tmp_path / "d.safetensors")
    found = restore_detections(tmp_path / "d.safetensors")
    assert list(found) == list(stored)
    for name, items in stored.items():
        assert len(found[name]) == len(items)
        assert all(same(*pair) for pair in zip(found[name], items))


def test_an_unknown_class_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="class 'cat' is not one of"):
        store_detections({"day": [TWO]}, ["dog"], tmp_path / "d.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    path = tmp_path / "d.safetensors"
    with pytest.raises(InputError, match=r"d\.safetensors: missing"):
        restore_detections(path)
    store_detections({"day": [TWO]}, ["dog", "cat"], path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"\xff" * 64):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"d\.safetensors: damaged"):
            restore_detections(path)
