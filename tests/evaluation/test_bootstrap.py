"""Weighted average precision is the evaluator's own, on the images as they are and on images written out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_run import random_detections, random_images

from duet.evaluation import bootstrap
from duet.evaluation.average_precision import class_precisions
from duet.evaluation.bootstrap import average_precisions, image_weights
from duet.evaluation.matches import ClassMatches, class_matches

CLASSES = ("cat", "dog", "bird")


def evaluator_values(images, detections, evaluator="faster-coco-eval"):
    by_path = {image.path: item for image, item in zip(images, detections)}
    values = class_precisions(images, by_path, CLASSES, evaluator)
    none = float("nan")
    return {
        name: [none if value.ap50 is None else value.ap50, none if value.ap50_95 is None else value.ap50_95]
        for name, value in values.items()
    }


def by_hand(scores_images, correct, ignored, boxes):
    scores = np.linspace(0.9, 0.1, len(scores_images))
    rows = np.array([correct] * 10, dtype=bool).reshape(10, -1)
    out = np.array([ignored] * 10, dtype=bool).reshape(10, -1)
    return ClassMatches(scores, np.array(scores_images, dtype=np.int64), rows, out, np.array(boxes))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 15),
    known=st.sampled_from([CLASSES, CLASSES[:1], ("dog", "bird")]),
    labelled=st.sampled_from([CLASSES, CLASSES[1:]]),
    decimals=st.sampled_from([None, 1, 0]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    others=st.sampled_from([0, 4, 40]),
    evaluator=st.sampled_from(["faster-coco-eval", "pycocotools"]),
)
def test_with_every_weight_one_it_is_the_evaluators_value(
    seed, count, known, labelled, decimals, ignored, others, evaluator
):
    generator = np.random.default_rng(seed)
    images = random_images(generator, count, labelled, ignored=ignored)
    detections = random_detections(generator, images, CLASSES, known, others=others, decimals=decimals)
    expected = evaluator_values(images, detections, evaluator)
    matches = class_matches(images, detections, CLASSES)
    for name in CLASSES:
        value = average_precisions(matches[name], np.ones((1, count), dtype=int))[0]
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-9, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 10))
def test_a_weight_is_that_many_copies_of_the_image(seed, count):
    generator = np.random.default_rng(seed)
    images = random_images(generator, count, CLASSES)
    detections = random_detections(generator, images, CLASSES)
    weights = image_weights(f"domain {seed}", count, 3)
    matches = class_matches(images, detections, CLASSES)
    for row in range(3):
        drawn = [place for place in range(count) for _ in range(weights[row, place])]
        copies = [replace(images[place], path=Path(f"copy-{number}")) for number, place in enumerate(drawn)]
        expected = evaluator_values(copies, [detections[place] for place in drawn])
        for name in CLASSES:
            value = average_precisions(matches[name], weights[row : row + 1])[0]
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-9, err_msg=name)


def test_average_precision_by_hand():
    # a wrong one in image 1, a right one in image 0, a right one in image 2; one box in 0, one in 2.
    matches = by_hand([1, 0, 2], [False, True, True], [False] * 3, [1, 0, 1])
    weights = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 2], [0, 1, 0], [2, 1, 0]])
    # as it is: precision 1/2 then 2/3, which is the envelope of both; without the wrong one 1; only image 2, twice,
    # behind one wrong: 2/3 for all recalls; no box at all; image 0 twice behind one wrong: 2/3.
    expected = [2 / 3, 1, 2 / 3, np.nan, 2 / 3]
    np.testing.assert_allclose(average_precisions(matches, weights)[:, 0], expected)
    np.testing.assert_allclose(average_precisions(matches, weights)[:, 1], expected)


def test_a_box_that_is_not_found_counts_by_its_weight():
    matches = by_hand([0], [True], [False], [1, 1])
    # recall 1/2: 51 of 101 recall points; recall 1/4: 26; only the missed one: none.
    weights = np.array([[1, 1], [1, 3], [0, 2]])
    np.testing.assert_allclose(average_precisions(matches, weights)[:, 0], [51 / 101, 26 / 101, 0])


def test_an_ignored_detection_changes_nothing():
    matches = by_hand([0, 0], [False, True], [True, False], [1])
    np.testing.assert_allclose(average_precisions(matches, np.array([[1], [4]])), 1)


def test_without_a_detection_it_is_zero_and_without_a_box_nothing():
    none = by_hand([], [], [], [1, 0])
    np.testing.assert_array_equal(average_precisions(none, np.array([[1, 1], [0, 2]])), [[0, 0], [np.nan, np.nan]])


def test_chunks_do_not_change_the_values(monkeypatch):
    generator = np.random.default_rng(3)
    images = random_images(generator, 20, CLASSES)
    matches = class_matches(images, random_detections(generator, images, CLASSES), CLASSES)
    whole, weights = [], image_weights("day", 20, 50)
    whole = [average_precisions(matches[name], weights) for name in CLASSES]
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 140)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 100)
    np.testing.assert_array_equal(image_weights("day", 20, 50), weights)
    for name, values in zip(CLASSES, whole):
        np.testing.assert_array_equal(average_precisions(matches[name], weights), values)
        assert len(np.unique(values[:, 0])) > 10


def test_weights_of_another_test_split_are_refused():
    with pytest.raises(ValueError, match=r"expected \(B, 2\), got \(4, 3\)"):
        average_precisions(by_hand([0], [True], [False], [1, 1]), np.ones((4, 3), dtype=int))


@given(images=st.integers(1, 60), resamples=st.integers(0, 20), seed=st.integers(0, 5))
def test_each_resample_draws_as_many_images_as_there_are(images, resamples, seed):
    weights = image_weights("fog", images, resamples, seed)
    assert weights.shape == (resamples, images)
    assert (weights >= 0).all() and (weights.sum(axis=1) == images).all()


def test_resamples_are_decided_by_domain_number_of_images_and_seed():
    weights = image_weights("fog", 30, 40)
    np.testing.assert_array_equal(image_weights("fog", 30, 40), weights)
    np.testing.assert_array_equal(image_weights("fog", 30, 7), weights[:7])
    assert (image_weights("day", 30, 40) != weights).any()
    assert (image_weights("fog", 30, 40, seed=1) != weights).any()
    # drawn with replacement: the weight of an image is about Poisson with mean 1
    many = image_weights("fog", 200, 500)
    assert many.var() == pytest.approx(1 - 1 / 200, abs=0.02)
    assert np.abs(many.mean(axis=0) - 1).max() < 0.25


def test_the_stream_is_frozen():
    assert image_weights("fog", 5, 2).tolist() == FROZEN


FROZEN = [[1, 0, 1, 3, 0], [1, 0, 1, 1, 2]]


@pytest.mark.parametrize(("images", "resamples"), [(0, 5), (3, -1)])
def test_no_image_and_negative_numbers_are_refused(images, resamples):
    with pytest.raises(ValueError, match="expected images and no negative number"):
        image_weights("fog", images, resamples)
