"""Whether an exported detector finds what the detector itself finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from duet.detectors.base import Detections

SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 0.5  # pixels of the original image


@dataclass(frozen=True)
class Parity:
    """How two sets of detections in the same pictures differ.

    Args:
        pictures: their number.
        detections: detections that both found.
        score_difference: largest difference of a score.
        box_difference: largest difference of a side of a box, in pixels.
        only_one: where only one of them found something: ``picture: class score``.
    """

    pictures: int
    detections: int
    score_difference: float
    box_difference: float
    only_one: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether detections are the same within the tolerances; nothing to compare is no pass."""
        return (
            self.detections > 0
            and not self.only_one
            and self.score_difference <= SCORE_TOLERANCE
            and self.box_difference <= BOX_TOLERANCE
        )

    def __str__(self) -> str:
        """One sentence."""
        sentence = (
            f"{self.detections} detections in {self.pictures} pictures, scores differ by at most "
            f"{self.score_difference:.1e}, boxes by at most {self.box_difference:.1e} px"
        )
        if not self.only_one:
            return sentence
        return f"{sentence}; {len(self.only_one)} found by one side only, first {self.only_one[0]}"


def compare(ours: Mapping[Path, Detections], theirs: Mapping[Path, Detections], confidence: float) -> Parity:
    """Pair the detections of two models, picture by picture.

    Pairs are of one class; a detection takes the nearest box among those whose scores agree within the tolerance, or
    among all of its class if none does. One that is missing on the other side counts unless its score is within the
    score tolerance of ``confidence``: there, the threshold decides by chance.

    Args:
        ours: detections by picture.
        theirs: the same for the other model.
        confidence: the threshold that both ran with.

    Raises:
        ValueError: when the pictures are not the same.
    """
    if ours.keys() != theirs.keys():
        raise ValueError("expected detections for the same pictures")
    scores, boxes, alone = [0.0], [0.0], []
    pairs = 0
    for picture, first in ours.items():
        second = theirs[picture]
        partners = _partners(first, second)
        taken = {partner for partner in partners if partner is not None}
        missing = [(first, index) for index, partner in enumerate(partners) if partner is None]
        missing += [(second, index) for index in range(len(second.scores)) if index not in taken]
        alone += [
            f"{picture.name}: {side.labels[index]} {side.scores[index]:.3f}"
            for side, index in missing
            if side.scores[index] > confidence + SCORE_TOLERANCE
        ]
        for index, partner in enumerate(partners):
            if partner is not None:
                pairs += 1
                scores.append(abs(float(first.scores[index]) - float(second.scores[partner])))
                boxes.append(float(np.abs(first.boxes_xyxy[index] - second.boxes_xyxy[partner]).max()))
    return Parity(len(ours), pairs, max(scores), max(boxes), tuple(alone))


def _partners(first: Detections, second: Detections) -> list[int | None]:
    """For each detection of ``first`` its partner in ``second``; none is taken twice."""
    free = set(range(len(second.scores)))
    partners: list[int | None] = []
    for box, score, label in zip(first.boxes_xyxy, first.scores, first.labels):
        same = [index for index in sorted(free) if second.labels[index] == label]
        near = [index for index in same if abs(second.scores[index] - score) <= SCORE_TOLERANCE]
        distances = {index: np.abs(second.boxes_xyxy[index] - box).max() for index in near or same}
        best = min(distances, key=distances.get) if distances else None
        free.discard(best)
        partners.append(best)
    return partners
