"""Several detectors as one that sees what each of them sees; only for scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from duet.config import EvaluationSettings
from duet.detectors.base import Detections, Detector


class Committee:
    """The models of the method ``individual``, put together.

    Args:
        members: detectors without a common class.
    """

    def __init__(self, members: Sequence[Detector]) -> None:
        self.members = members

    def predict(
        self, images: Sequence[Path], image_size: int, settings: EvaluationSettings
    ) -> Iterator[tuple[Path, Detections]]:
        """All members' detections in each image, best first."""
        found = [dict(member.predict(images, image_size, settings)) for member in self.members]
        for path in images:
            parts = [detections[path] for detections in found]
            scores = np.concatenate([part.scores for part in parts])
            order = np.argsort(-scores, kind="stable")
            labels = [label for part in parts for label in part.labels]
            boxes = np.concatenate([part.boxes_xyxy for part in parts])
            yield path, Detections(boxes[order], scores[order], tuple(labels[index] for index in order))
