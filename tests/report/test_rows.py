"""Numbers, labels and durations as people read them."""

import pytest

from duet.report.rows import (
    class_list,
    count,
    duration,
    few_boxes_lines,
    learned_classes,
    number,
    own_slice_map,
    stage_title,
)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0.000"), (0.12349, "0.123"), (-0.0004, "0.000"), (-0.13, "-0.130")]
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0, "0"), (150, "150"), (12345, "12\u202f345")])
def test_count(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (425, "7 min 05 s"),
        (3600, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_class_list_is_short():
    assert class_list(["0", "1", "2"]) == "0 1 2"
    assert class_list(["traffic light", "bus"]) == "traffic light, bus"
    assert class_list(["aeroplane", "bicycle", "bird", "boat"]) == "aeroplane … boat (4)"
    assert class_list(["one very long name of a single class"]) == "one very long name of a single class"


def test_learned_classes_grow_with_the_stages(results):
    assert learned_classes(results, 1) == ("0", "1", "2")
    assert learned_classes(results, 3) == ("0", "1", "2", "3", "4", "5", "6", "7")
    assert learned_classes(results, 0) == tuple("0123456789")


def test_stage_title(results):
    assert stage_title(results, 3) == "Task 3 · fog · 6 7"
    assert stage_title(results, 0) == "All tasks at once"


def test_own_slice_is_looked_up_in_the_grid_too(results):
    stage, task = results["stages"][1], results["series"]["tasks"][0]
    assert own_slice_map(stage, task) == 0.8239
    stage["slices"] = []
    assert own_slice_map(stage, task) == 0.8239
    stage["grid"] = []
    assert own_slice_map(stage, task) is None


def test_classes_with_few_boxes_are_named():
    def stage(task, slices, boxes):
        cells = [{"domain": domain, "class": name, "boxes": count} for domain, name, count in boxes]
        return {"task": task, "slices": [{"domain": d, "classes": c} for d, c in slices], "class_ap": cells}

    boxes = [("a", "cat", 9), ("a", "dog", 10), ("a", "cow", 0), ("b", "cat", 3), ("b", "dog", 1)]
    results = {"stages": [stage(1, [("a", ["cat", "cow"])], boxes), stage(2, [("a", ["dog"]), ("b", ["cat"])], boxes)]}
    assert few_boxes_lines(results) == [
        "Fewer than 10 test boxes in a: cat (9); their mAP says little.",
        "Fewer than 10 test boxes in b: cat (3); their mAP says little.",
    ]
    results["stages"].pop(0)
    assert few_boxes_lines(results) == ["Fewer than 10 test boxes in b: cat (3); their mAP says little."]
