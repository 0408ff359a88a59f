"""Pictures as Ultralytics draws detections on them, and live streams as it reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from ultralytics.data.loaders import LoadStreams
from ultralytics.engine.results import Results
from ultralytics.utils import LOGGER

from duet.detectors.base import Detections
from duet.errors import InputError


def annotated(picture: np.ndarray, detections: Detections, classes: Sequence[str]) -> np.ndarray:
    """A copy of a picture with boxes, class names and scores.

    Args:
        picture: (H, W, 3) uint8, blue green red.
        detections: what was found in it.
        classes: the detector's class names in the order of its outputs; their position decides the colour.
    """
    position = {name: index for index, name in enumerate(classes)}
    rows = torch.empty(len(detections.scores), 6)
    rows[:, :4] = torch.from_numpy(detections.boxes_xyxy)
    rows[:, 4] = torch.from_numpy(detections.scores)
    rows[:, 5] = torch.tensor([position[name] for name in detections.labels])
    return Results(picture.copy(), path="", names=dict(enumerate(classes)), boxes=rows).plot()


def stream_pictures(address: str) -> Iterator[np.ndarray]:
    """The newest frame of a camera or network stream, again and again; frames that come meanwhile are left out.

    Args:
        address: URL (rtsp, rtmp, tcp, http) or the number of a camera.

    Raises:
        InputError: when the stream cannot be opened.
    """
    level = LOGGER.level
    LOGGER.setLevel("ERROR")
    try:
        stream = LoadStreams(address)
    except (ConnectionError, OSError) as error:
        raise InputError(f"{address}: the stream cannot be opened") from error
    finally:
        LOGGER.setLevel(level)
    try:
        for _, pictures, _ in stream:
            yield pictures[0]
    finally:
        stream.close()
