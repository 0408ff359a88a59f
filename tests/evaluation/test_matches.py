"""Matches worked by hand, and equal to what COCO's evaluator makes of the same detections."""

from dataclasses import replace

import numpy as np
import pytest
from hand_written_boxes import found, truth

from duet.evaluation.matches import class_matches

A, B, C = (0, 0, 20, 20), (40, 40, 80, 80), (50, 0, 70, 20)


def test_matches_by_hand():
    images = [truth("1", ("cat", A), ("cat", B)), truth("2", ("dog", A)), truth("3")]
    detections = [
        found(("cat", 0.75, A), ("cat", 0.5, C), ("cat", 0.25, B), ("dog", 0.125, A)),
        found(("cat", 0.875, A)),
        found(("bird", 0.5, A)),
    ]
    matches = class_matches(images, detections, ("cat", "dog"))
    cat = matches["cat"]
    assert cat.scores.tolist() == [0.875, 0.75, 0.5, 0.25]
    assert cat.images.tolist() == [1, 0, 0, 0]
    assert cat.correct.tolist() == [[False, True, False, True]] * 10
    assert not cat.ignored.any()
    assert cat.boxes.tolist() == [2, 0, 0]
    assert matches["dog"].images.tolist() == [0]
    assert not matches["dog"].correct.any()  # the dog is in another image
    assert matches["dog"].boxes.tolist() == [0, 1, 0]
    assert list(matches) == ["cat", "dog"]


def test_a_match_ends_where_the_overlap_ends():
    shifted = (0, 0, 20, 14)  # IoU 0.7
    matches = class_matches([truth("1", ("cat", A))], [found(("cat", 0.5, shifted))], ("cat",))["cat"]
    assert matches.correct[:, 0].tolist() == [True] * 5 + [False] * 5


@pytest.mark.parametrize("flag", ["difficult", "crowd"])
def test_a_detection_on_an_ignored_box_is_neither_right_nor_wrong(flag):
    image = replace(truth("1", ("cat", A), ("cat", B)), **{flag: np.array([False, True])})
    matches = class_matches([image], [found(("cat", 0.75, B), ("cat", 0.5, A))], ("cat",))["cat"]
    assert matches.ignored.tolist() == [[True, False]] * 10
    assert matches.correct.tolist() == [[False, True]] * 10
    assert matches.boxes.tolist() == [1]


def test_a_box_with_its_edges_swapped_is_left_out_as_coco_does():
    matches = class_matches([truth("1", ("cat", A))], [found(("cat", 0.5, (20, 0, 0, 20)))], ("cat",))["cat"]
    assert matches.ignored.all()
    assert not matches.correct.any()


def test_equal_scores_stand_in_the_order_of_the_images():
    images = [truth("1", ("cat", A)), truth("2", ("cat", A))]
    detections = [found(("cat", 0.5, C)), found(("cat", 0.5, A))]
    assert class_matches(images, detections, ("cat",))["cat"].images.tolist() == [0, 1]
    assert class_matches(images[::-1], detections[::-1], ("cat",))["cat"].correct[0].tolist() == [True, False]


def test_of_one_image_and_class_the_hundred_best_take_part():
    many = found(*(("cat", 0.9 - number / 1000, C) for number in range(105)), ("cat", 0.01, A))
    matches = class_matches([truth("1", ("cat", A))], [many], ("cat",))["cat"]
    assert len(matches.scores) == 100
    assert not matches.correct.any()  # the right one is the last


def test_without_detections_or_boxes_there_is_nothing_to_match():
    matches = class_matches([truth("1", ("cat", A))], [found()], ("cat", "dog"))
    assert matches["cat"].correct.shape == (10, 0)
    assert matches["cat"].boxes.tolist() == [1]
    only = class_matches([truth("1")], [found(("cat", 0.5, A))], ("cat",))["cat"]
    assert only.correct.shape == (10, 1)
    assert not only.correct.any()


def test_as_many_entries_as_images_are_needed():
    with pytest.raises(ValueError, match="detections on 1 images, got them on 2"):
        class_matches([truth("1")], [found(), found()], ("cat",))
