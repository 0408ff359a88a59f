from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hand_written_boxes import found, truth

from duet.config import EvaluationSettings
from duet.evaluation.average_precision import ClassPrecision, class_precisions, mean_precision
from duet.evaluation.run import score_domain

CLASSES = ("cat", "dog", "bird")


A, B, C = (0, 0, 20, 20), (40, 40, 80, 80), (50, 0, 70, 20)


@pytest.mark.parametrize("evaluator", ["faster-coco-eval", "pycocotools"])
def test_average_precision_by_hand(evaluator):
    images = [truth("1", ("cat", A), ("cat", B)), truth("2", ("dog", A))]
    detections = {
        Path("1"): found(("cat", 0.9, A), ("cat", 0.8, C), ("cat", 0.7, B)),  # hit, miss, hit
        Path("2"): found(("dog", 0.9, B)),  # miss
    }
    values = class_precisions(images, detections, CLASSES, evaluator)
    # precision 1 up to recall 0.5, then 2/3: 51 and 50 of COCO's 101 recall points
    assert values["cat"].ap50 == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert values["cat"].ap50_95 == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert values["cat"].boxes == 2
    assert values["dog"].ap50 == 0.0
    assert values["bird"].ap50 is None
    assert values["bird"].boxes == 0


@pytest.mark.parametrize("evaluator", ["faster-coco-eval", "pycocotools"])
def test_detections_on_images_without_the_class_count(evaluator):
    images = [truth("1", ("cat", A)), truth("2", ("dog", A))]
    detections = {Path("1"): found(("cat", 0.5, A)), Path("2"): found(("cat", 0.9, B), ("dog", 0.9, A))}
    values = class_precisions(images, detections, CLASSES, evaluator)
    assert values["cat"].ap50 == pytest.approx(0.5)  # the false positive comes first
    assert values["dog"].ap50 == pytest.approx(1.0)


@pytest.mark.parametrize("evaluator", ["faster-coco-eval", "pycocotools"])
@pytest.mark.parametrize("flag", ["difficult", "crowd"])
def test_ignored_boxes_are_neither_found_nor_missed(evaluator, flag):
    whole = truth("1", ("cat", A), ("cat", B))
    ignored = replace(whole, **{flag: np.array([False, True])})
    on_it = {Path("1"): found(("cat", 0.9, B), ("cat", 0.8, A))}
    beside = {Path("1"): found(("cat", 0.9, C), ("cat", 0.8, A))}
    assert class_precisions([ignored], on_it, CLASSES, evaluator)["cat"] == ClassPrecision(
        pytest.approx(1.0), pytest.approx(1.0), 1
    )
    assert class_precisions([ignored], beside, CLASSES, evaluator)["cat"].ap50 == pytest.approx(0.5)
    only = replace(truth("1", ("cat", B)), **{flag: np.array([True])})
    assert class_precisions([only], on_it, CLASSES, evaluator)["cat"] == ClassPrecision(None, None, 0)


class Fixed:
    """A detector that finds what it was told."""

    def __init__(self, detections):
        self.detections = detections

    def predict(self, paths, image_size, settings):
        return [(path, self.detections[path]) for path in paths]


def test_a_slice_can_leave_out_images_without_its_classes():
    images = [truth("1", ("cat", A)), truth("2", ("dog", A)), truth("3")]
    nothing = found()
    detector = Fixed({Path("1"): found(("cat", 0.5, A)), Path("2"): found(("cat", 0.9, B)), Path("3"): nothing})
    everything = score_domain(detector, "d", images, CLASSES, 64, EvaluationSettings())
    half, whole = pytest.approx(0.5), pytest.approx(1.0)
    assert everything.score(["cat"]) == {"map50": half, "map50_95": half, "images": 3, "boxes": 1}
    settings = EvaluationSettings(drop_images_without_class=True)
    own = score_domain(detector, "d", images, CLASSES, 64, settings)
    assert own.score(["cat"]) == {"map50": whole, "map50_95": whole, "images": 1, "boxes": 1}
    assert own.score(["cat", "dog"])["images"] == 2  # the false cat is in the dog's image
    assert own.score(["cat", "dog"])["map50"] == pytest.approx(0.25)
    assert own.score(["bird"]) == {"map50": None, "map50_95": None, "images": 0, "boxes": 0}


def test_both_evaluators_agree_on_random_detections():
    generator = np.random.default_rng(0)

    def boxes(count):
        corner = generator.uniform(0, 60, (count, 2))
        return np.concatenate([corner, corner + generator.uniform(10, 40, (count, 2))], 1)

    images, detections = [], {}
    for number in range(30):
        labels = generator.choice(CLASSES, 3)
        placed = boxes(3)
        images.append(truth(str(number), *zip(labels, placed)))
        moved = np.concatenate([placed + generator.normal(0, 2, placed.shape), boxes(4)])
        names = [*labels, *generator.choice(CLASSES, 4)]
        detections[Path(str(number))] = found(*zip(names, generator.uniform(0, 1, 7), moved))
    fast = class_precisions(images, detections, CLASSES)
    slow = class_precisions(images, detections, CLASSES, "pycocotools")
    for name in CLASSES:
        assert 0.05 < fast[name].ap50 < 0.95
        assert fast[name].ap50 == pytest.approx(slow[name].ap50, abs=1e-6)
        assert fast[name].ap50_95 == pytest.approx(slow[name].ap50_95, abs=1e-6)


def test_no_detection_at_all_is_zero_and_no_image_an_error():
    images = [truth("1", ("cat", A))]
    values = class_precisions(images, {Path("1"): found()}, CLASSES)
    assert values["cat"].ap50 == 0.0
    with pytest.raises(ValueError, match="no images"):
        class_precisions([], {}, CLASSES)
    with pytest.raises(ValueError, match="was not run"):
        class_precisions(images, {}, CLASSES)


def test_map_of_a_slice_is_the_mean_over_classes_with_boxes():
    images = [truth("1", ("cat", A), ("dog", B))]
    values = class_precisions(images, {Path("1"): found(("cat", 0.5, A))}, CLASSES)
    assert mean_precision(values, ("cat", "dog")) == (pytest.approx(0.5), pytest.approx(0.5))
    assert mean_precision(values, ("cat", "bird")) == (pytest.approx(1.0), pytest.approx(1.0))
    assert mean_precision(values, ("bird",)) == (None, None)


class FakeDetector:
    """Gives prepared detections; counts how often each image is run."""

    def __init__(self, detections):
        self.detections, self.runs = detections, []

    def predict(self, images, image_size, settings):
        for path in images:
            self.runs.append(path)
            yield path, self.detections[path]


def test_a_domain_is_run_once_and_boxes_are_found_missed_or_taken_for_another_class():
    from duet.config import EvaluationSettings

    images = [truth("1", ("cat", A), ("dog", B), ("bird", C)), truth("2", ("cat", A))]
    detections = {
        Path("1"): found(("cat", 0.9, A), ("bird", 0.9, B), ("dog", 0.3, B), ("bird", 0.1, C)),  # B's best: a bird
        Path("2"): found(),
    }
    detector = FakeDetector(detections)
    scores = score_domain(detector, "d", images, CLASSES, 32, EvaluationSettings())
    assert detector.runs == [Path("1"), Path("2")]
    assert scores.background == {"cat": (1, 1, 0), "dog": (0, 0, 1), "bird": (0, 1, 0)}
    assert scores.score(("cat", "dog"))["boxes"] == 3
    assert scores.score(("cat", "dog"))["images"] == 2
