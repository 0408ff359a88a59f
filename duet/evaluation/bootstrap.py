"""Average precision over resampled test images: drawing N images with replacement weighs each by how often it came.

A resample of the images counts each detection and each box as often as its image was drawn, so average precision is
that of the evaluator with weighted sums (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 6). Copies of
a detection stand together where scores are equal; the order of a tie between two copies of one image is the only
place where a list with the images written out may differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from scipy import sparse

from duet.evaluation.matches import ClassMatches

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's recall points
SEED = 0  # of every run, so that two runs over the same test split are resampled alike
_DRAWS_AT_ONCE = 1 << 22
_CELLS_AT_ONCE = 1 << 18  # a few arrays of 2 MB: fast in the cache, and the bound of memory
_TINY = np.spacing(1)  # COCO's divisor where nothing was detected yet


def image_weights(domain: str, images: int, resamples: int, seed: int = SEED) -> np.ndarray:
    """How often each image is drawn in each resample of a domain's test split.

    Depends on the arguments alone, so that runs over one split are resampled alike and their differences are paired;
    fewer resamples are the first of many. The stream is NumPy's frozen legacy one, equal in every version.

    Args:
        domain: name of the domain.
        images: number of its test images, N.
        resamples: number of resamples, B.
        seed: of the bootstrap.

    Returns:
        (B, N) int32; each row sums to N.

    Raises:
        ValueError: when there is no image, or the number of resamples is negative.
    """
    if images < 1 or resamples < 0:
        raise ValueError(f"resamples of a test split: expected images and no negative number, got {images, resamples}")
    words = np.frombuffer(hashlib.sha256(domain.encode()).digest(), dtype="<u4")
    stream = np.random.RandomState(np.array([seed, images, *words], dtype=np.uint32))
    weights = np.empty((resamples, images), dtype=np.int32)
    for rows in _chunks(resamples, _DRAWS_AT_ONCE // images):
        count = rows.stop - rows.start
        drawn = stream.randint(0, images, size=(count, images)) + np.arange(count)[:, None] * images
        weights[rows] = np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images)
    return weights


def average_precisions(matches: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """AP50 and AP50-95 of one class for each weighting of the images, by COCO's 101-point interpolation.

    With every weight 1 this is ``class_precisions`` of ``average_precision``.

    Args:
        matches: the class's detections and boxes over N images.
        weights: (B, N) integers, how often each image counts.

    Returns:
        (B, 2) float64, 0 to 1; NaN where the weighted images have no box of the class.

    Raises:
        ValueError: when the weights are for another number of images.
    """
    if weights.ndim != 2 or weights.shape[1] != len(matches.boxes):
        raise ValueError(f"weights: expected (B, {len(matches.boxes)}), got {weights.shape}")
    boxes = weights @ matches.boxes
    values = np.zeros((len(weights), 2))
    # Precision is largest where a detection is right, so nothing but matched detections has to be looked at.
    matched = np.flatnonzero((matches.correct | matches.ignored).any(axis=0))
    if len(matched):
        between = _detections_until(matches, matched)
        for rows in _chunks(len(weights), _CELLS_AT_ONCE // max(len(matched), len(matches.boxes))):
            by_image = np.ascontiguousarray(weights[rows].T, dtype=np.float64)
            values[rows] = _of_chunk(matches, matched, between, by_image, boxes[rows])
    values[boxes == 0] = np.nan
    return values


def _detections_until(matches: ClassMatches, matched: np.ndarray) -> sparse.csr_array:
    """(M, N): how many detections of each image stand behind the last matched one and up to this one."""
    ends = np.concatenate([[0], matched + 1])
    ones = np.ones(ends[-1])
    return sparse.csr_array((ones, matches.images[: ends[-1]], ends), shape=(len(matched), len(matches.boxes)))


def _of_chunk(
    matches: ClassMatches, matched: np.ndarray, between: sparse.csr_array, by_image: np.ndarray, boxes: np.ndarray
) -> np.ndarray:
    seen = np.cumsum(between @ by_image, axis=0)  # (M, B)
    weight = by_image[matches.images[matched]]
    per_threshold = [
        _interpolated(weight, seen, hit, ignored, np.maximum(boxes, 1))
        for hit, ignored in zip(matches.correct[:, matched], matches.ignored[:, matched])
    ]
    return np.stack([per_threshold[0], np.mean(per_threshold, axis=0)], axis=1)


def _interpolated(
    weight: np.ndarray, seen: np.ndarray, hit: np.ndarray, ignored: np.ndarray, boxes: np.ndarray
) -> np.ndarray:
    """(B,) average precision at one IoU threshold.

    Args:
        weight: (M, B) of the matched detections' images.
        seen: (M, B) weighted number of detections up to each, whatever they are.
        hit: (M,) bool, right at this threshold.
        ignored: (M,) bool, neither right nor wrong at this threshold.
        boxes: (B,) weighted number of boxes, at least 1.
    """
    right = np.cumsum(weight[hit], axis=0)  # (P, B)
    if not len(right):
        return np.zeros(len(boxes))
    judged = seen[hit]
    if ignored.any():
        judged = judged - np.cumsum(weight * ignored[:, None], axis=0)[hit]
    precision = right / (judged + _TINY)
    best_from_here = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    reached = np.searchsorted(RECALLS, right / boxes, side="right")
    return (best_from_here * np.diff(reached, axis=0, prepend=0)).sum(axis=0) / len(RECALLS)


def _chunks(count: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
