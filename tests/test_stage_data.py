"""Pseudo-labels and kept images."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from duet.committee import Committee
from duet.config import EvaluationSettings, ExemplarSettings, PseudoLabelSettings, RunConfig
from duet.datasets.images import LabelledImage
from duet.detectors.base import Detections
from duet.stage_data import (
    LOOKED_AT,
    count_pseudo_labels,
    exemplars,
    own_labels,
    pseudo_labelled,
    pseudo_score,
    seen_objects,
    spread,
)


def image(name, *boxes):
    corners = np.array([box for _, box in boxes], dtype=np.float64).reshape(-1, 4)
    labels = tuple(label for label, _ in boxes)
    return LabelledImage(Path(name), (100, 100), corners, labels, tuple(f"{name}, line {n}" for n in range(len(boxes))))


class Says:
    """A detector that says what it was told to."""

    def __init__(self, found):
        self.found = found

    def predict(self, images, image_size, settings):
        self.multi_label = settings.multi_label
        for path in images:
            boxes, scores, labels = self.found.get(str(path), ([], [], []))
            corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
            yield path, Detections(corners, np.array(scores, dtype=np.float32), tuple(labels))


def labelled(images, found, **settings):
    own = own_labels(images, ("new",))
    teacher = Says(found)
    after = pseudo_labelled(own, teacher, PseudoLabelSettings(**settings), EvaluationSettings(), 64)
    assert not teacher.multi_label  # one object, one label
    return after


def test_sure_detections_that_touch_no_new_object_become_labels():
    images = [image("a", ("new", (0, 0, 20, 20)), ("hidden", (50, 50, 60, 60))), image("b")]
    found = {
        "a": (
            [(50, 50, 61, 60), (1, 1, 20, 20), (70, 70, 80, 80), (10, 10, 30, 30)],
            [0.9, 0.95, 0.4, 0.8],
            ["old", "old", "old", "older"],
        )
    }
    first, second = labelled(images, found, confidence=0.5, overlap=0.3)
    assert first.labels == ("new", "old", "older")  # the third is unsure, the second lies on a new object
    assert first.boxes_xyxy[1].tolist() == [50, 50, 61, 60]
    assert first.lines == ("a, line 0", "pseudo-label 0.90", "pseudo-label 0.80")
    assert [pseudo_score(line) for line in first.lines] == [None, 0.9, 0.8]
    assert second.labels == ()
    assert count_pseudo_labels([first, second]) == {"old": 1, "older": 1}
    strict, _ = labelled(images, found, confidence=0.5, overlap=0.0)
    assert strict.labels == ("new", "old")


def test_images_of_no_new_object_are_left_out_where_a_task_has_none():
    images = [image("a", ("new", (0, 0, 20, 20))), image("b", ("hidden", (50, 50, 60, 60))), image("c")]
    kept, dropped = (own_labels(images, ("new",), what) for what in ("keep", "drop"))
    assert [(item.path.name, item.labels) for item in kept] == [("a", ("new",)), ("b", ()), ("c", ())]
    assert [item.path.name for item in dropped] == ["a"]


@pytest.mark.parametrize("box", [(0, 0, 100, 100), (42, 42, 47, 47), (45, 45, 75, 75)])
def test_a_box_that_holds_a_new_object_or_lies_in_one_is_no_label(box):
    images = [image("a", ("new", (40, 40, 60, 60)))]  # the IoU is at most 0.21
    (only,) = labelled(images, {"a": ([box], [0.9], ["old"])})
    assert only.labels == ("new",)
    (kept,) = labelled(images, {"a": ([box], [0.9], ["old"])}, overlap=1.0)
    assert kept.labels == ("new", "old")


def test_a_detection_without_area_is_no_label():
    (only,) = labelled([image("a")], {"a": ([(5, 5, 5, 9)], [0.9], ["old"])})
    assert only.labels == ()


def test_kept_images_have_the_labels_of_their_own_task_and_stay_the_same():
    day = [image(f"d{n}", ("x" if n % 2 else "y", (0, 0, 9, 9)), ("later", (20, 20, 30, 30))) for n in range(20)]
    night = [image(f"n{n}", ("z", (0, 0, 9, 9))) for n in range(6)]
    images = {"day": day, "night": night}
    settings = ExemplarSettings(images_per_class=3)
    one = exemplars(images, [("day", ("x", "y"))], settings, 0)
    both = exemplars(images, [("day", ("x", "y")), ("night", ("z",))], settings, 0)
    assert sorted(label for kept in one for label in kept.labels) == ["x"] * 3 + ["y"] * 3
    assert [kept.path for kept in both[:6]] == [kept.path for kept in one]
    assert len(both) == 9
    assert [k.path for k in exemplars(images, [("day", ("x", "y"))], settings, 1)] != [k.path for k in one]


def test_own_labels_leave_out_the_others():
    (kept,) = own_labels([image("a", ("x", (0, 0, 9, 9)), ("y", (5, 5, 9, 9)))], ("y",))
    assert kept.labels == ("y",)
    assert kept.boxes_xyxy.tolist() == [[5, 5, 9, 9]]


def test_a_committee_sees_what_its_members_see_best_first():
    one = Says({"a": ([(0, 0, 1, 1), (0, 0, 2, 2)], [0.9, 0.2], ["x", "x"])})
    other = Says({"a": ([(0, 0, 3, 3)], [0.5], ["y"])})
    ((path, found),) = Committee([one, other]).predict([Path("a")], 64, EvaluationSettings())
    assert path == Path("a")
    assert found.labels == ("x", "y", "x")
    assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert found.boxes_xyxy[1].tolist() == [0, 0, 3, 3]


def test_what_the_teacher_sees_is_counted_per_picture_and_off_the_new_objects():
    images = [image("a", ("new", (0, 0, 20, 20))), image("b", ("new", (0, 0, 20, 20))), image("c"), image("d")]
    old, on_new = (50, 50, 61, 60), (1, 1, 20, 20)
    found = {
        "a": ([old, (70, 70, 80, 80), on_new], [0.9, 0.8, 0.95], ["old", "older", "old"]),
        "b": ([on_new, old], [0.95, 0.4], ["old", "old"]),  # one lies on a new object, the other is unsure
        "d": ([old], [0.5], ["old"]),
    }
    assert seen_objects(images, Says(found), RunConfig(method={"name": "t"})) == 3 / 4
    assert seen_objects(images, Says({}), RunConfig(method={"name": "t"})) == 0
    assert seen_objects([], Says({}), RunConfig(method={"name": "t"})) == 0


def test_many_pictures_are_looked_at_in_part_from_all_over():
    images = [image(str(number)) for number in range(LOOKED_AT + 44)]
    last = {str(number): ([(0, 0, 9, 9)], [0.9], ["old"]) for number in range(LOOKED_AT, LOOKED_AT + 44)}
    assert 0.1 < seen_objects(images, Says(last), RunConfig(method={"name": "t"})) < 0.2


@pytest.mark.parametrize("length", [0, 1, 5, 6, 9, 10, 11, 1000])
def test_a_part_of_a_sequence_is_spread_over_it(length):
    found = spread(range(length), 5)
    assert len(found) == min(length, 5) and sorted(set(found)) == found
    if length > 5:
        gaps = [after - before for before, after in pairwise(found)]
        assert max(gaps) - min(gaps) <= 1 and found[0] == 0 and found[-1] >= length - max(gaps) - 1
