"""When two sets of detections count as the same, on cases worked by hand."""

from pathlib import Path

import numpy as np
import pytest

from duet.detectors.base import Detections
from duet.parity import compare

BOX = (10.0, 10.0, 30.0, 40.0)
FAR = (100.0, 100.0, 130.0, 140.0)


def found(*rows):
    """(box, score, label) → detections."""
    return Detections(
        np.array([row[0] for row in rows], dtype=np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], dtype=np.float32),
        tuple(row[2] for row in rows),
    )


def parity(ours, theirs, confidence=0.25):
    return compare({Path("a.png"): ours}, {Path("a.png"): theirs}, confidence)


def test_the_largest_differences_are_reported():
    moved = (10.0, 10.25, 30.0, 40.0)
    result = parity(found((BOX, 0.9, "cat"), (FAR, 0.5, "dog")), found((moved, 0.9, "cat"), (FAR, 0.5 + 2**-11, "dog")))
    assert result.passed
    assert (result.pictures, result.detections) == (1, 2)
    assert result.box_difference == 0.25
    assert result.score_difference == 2**-11


def test_the_order_of_near_equal_scores_does_not_matter():
    ours = found((BOX, 0.5001, "cat"), (FAR, 0.5, "cat"))
    theirs = found((FAR, 0.5001, "cat"), (BOX, 0.5, "cat"))
    result = parity(ours, theirs)
    assert result.passed
    assert result.box_difference == 0.0


@pytest.mark.parametrize(
    "theirs",
    [
        found(((10.0, 10.0, 30.6, 40.0), 0.9, "cat")),
        found((BOX, 0.8985, "cat")),
        found((BOX, 0.9, "dog")),
        found(),
        found((BOX, 0.9, "cat"), (FAR, 0.3, "cat")),
    ],
    ids=["box", "score", "class", "missing", "one more"],
)
def test_each_kind_of_difference_fails(theirs):
    assert not parity(found((BOX, 0.9, "cat")), theirs).passed


def test_what_only_one_found_is_named():
    result = parity(found((BOX, 0.9, "cat"), (FAR, 0.75, "dog")), found((BOX, 0.9, "cat")))
    assert result.only_one == ("a.png: dog 0.750",)
    assert "1 found by one side only, first a.png: dog 0.750" in str(result)


def test_at_the_threshold_chance_decides():
    both = (BOX, 0.9, "cat")
    assert parity(found(both, (FAR, 0.2505, "cat")), found(both)).passed
    assert not parity(found(both, (FAR, 0.252, "cat")), found(both)).passed


def test_nothing_to_compare_is_no_pass():
    result = parity(found(), found())
    assert not result.passed
    assert not result.only_one


def test_other_pictures_cannot_be_compared():
    with pytest.raises(ValueError, match="the same pictures"):
        compare({Path("a"): found()}, {Path("b"): found()}, 0.25)
