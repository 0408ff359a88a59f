"""Predict with a deployed detector: annotated pictures and videos, one JSON document, COCO results."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from duet.config import EvaluationSettings
from duet.detectors.base import BATCH, Detections, Detector
from duet.detectors.ultralytics_pictures import annotated, stream_pictures
from duet.errors import InputError
from duet.monitor import Monitor
from duet.sources import Frame, Source, find_sources, frame_count, read_frames
from duet.state import write_atomic, write_json

IMAGE_SIZE = 640  # for a detector that does not know the size it was trained at
WRITABLE = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class PredictRequest:
    """What to predict on, and what to write.

    Args:
        sources: as in :func:`duet.sources.find_sources`.
        settings: thresholds.
        image_size: longer side of the input in pixels; None takes that of the detector's training.
        batch: pictures of one shape that run together; streams run one by one.
        annotated: folder for pictures and videos with the detections drawn on them; None writes none.
        json_file: one document with everything; None writes none.
        coco_file: COCO results; their image and category numbers are explained in ``NAME.images.json`` beside it.
        most_frames: stop after so many; None reads to the end.
    """

    sources: tuple[str, ...]
    settings: EvaluationSettings
    image_size: int | None = None
    batch: int = BATCH
    annotated: Path | None = None
    json_file: Path | None = None
    coco_file: Path | None = None
    most_frames: int | None = None


@dataclass
class Prediction:
    """What came of it.

    Args:
        frames: pictures and video frames with predictions.
        detections: their number.
        failed: what could not be read: (path, why).
        records: per frame ``image``, ``frame``, ``size_hw``, ``boxes_xyxy``, ``scores``, ``labels`` and its ``place``;
            kept only when a document is asked for.
    """

    frames: int = 0
    detections: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)


def predict(detector: Detector, request: PredictRequest, monitor: Monitor | None = None) -> Prediction:
    """Run a detector over files or a stream and write what was asked for.

    A file that cannot be read is named in the result, and the rest is still done. Ctrl-C ends a stream, whose results
    are then written; with files it leaves no document behind, and no part of a video.

    Args:
        detector: the detector.
        request: what to do.
        monitor: progress.

    Raises:
        InputError: when a source does not exist, an output would overwrite one, or its name is none for it.
    """
    sources = find_sources(request.sources)
    refuse_outputs(request)
    live = sources[0].kind == "stream"
    result = Prediction()
    monitor = monitor or Monitor()
    monitor.begin("predict", request.most_frames or frame_count(sources))
    frames = read_frames(sources, lambda source, why: result.failed.append((source.name, why)), stream_pictures)
    size = request.image_size or detector.image_size or IMAGE_SIZE
    found = detector.predict_pictures(
        ((frame, frame.picture) for frame in _first(frames, request.most_frames)),
        size,
        request.settings,
        1 if live else request.batch,
    )
    with _AnnotatedFolder(request.annotated, sources, detector.classes) as folder:
        with suppress(KeyboardInterrupt) if live else nullcontext():
            for frame, detections in found:
                folder.add(frame, detections)
                _count(result, frame, detections, request)
                monitor.advance(result.frames + len(result.failed))
        folder.finish()
    _write_documents(result, detector, request, size)
    return result


def refuse_outputs(request: PredictRequest) -> None:
    """Before anything runs: documents are called ``.json``, so that none takes the place of a detector or a picture.

    Raises:
        InputError: naming the output.
    """
    for path in (request.json_file, request.coco_file):
        if path is not None and path.suffix.lower() != ".json":
            raise InputError(f"{path}: expected a name that ends in .json")
        if path is not None and path.is_dir():
            raise InputError(f"{path}: is a folder; expected a file")
    for path in [request.annotated, *request.annotated.parents] if request.annotated else []:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; expected a folder for the annotated pictures")


def _first(frames: Iterator[Frame], most: int | None) -> Iterator[Frame]:
    for frame in frames:
        yield frame
        if frame.place == most:
            return


def _count(result: Prediction, frame: Frame, detections: Detections, request: PredictRequest) -> None:
    result.frames += 1
    result.detections += len(detections.scores)
    if request.json_file or request.coco_file:
        result.records.append(
            {
                "place": frame.place,
                "image": frame.source.name,
                **({} if frame.number is None else {"frame": frame.number}),
                "size_hw": list(frame.picture.shape[:2]),
                "boxes_xyxy": [[round(side, 2) for side in box] for box in detections.boxes_xyxy.tolist()],
                "scores": [round(score, 5) for score in detections.scores.tolist()],
                "labels": list(detections.labels),
            }
        )


def _write_documents(result: Prediction, detector: Detector, request: PredictRequest, size: int) -> None:
    records = sorted(result.records, key=lambda record: record["place"])
    if request.json_file:
        document = {
            "classes": list(detector.classes),
            "image_size": size,
            "confidence": request.settings.confidence,
            "iou": request.settings.iou,
            "images": [{key: value for key, value in record.items() if key != "place"} for record in records],
            "failed": [{"image": name, "reason": why} for name, why in result.failed],
        }
        write_json(request.json_file, document)
    if request.coco_file:
        write_json(coco_names_file(request.coco_file), coco_names(records, detector.classes))
        write_json(request.coco_file, coco_results(records, detector.classes))


def coco_names_file(results: Path) -> Path:
    """Where the numbers of COCO results are explained: ``found.json`` → ``found.images.json``."""
    return results.with_name(f"{results.stem}.images.json")


def coco_names(records: Sequence[dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """The ``images`` and ``categories`` of a COCO document, numbered from 1 in the order of files and of classes."""
    images = [
        {
            "id": record["place"],
            "file_name": record["image"],
            **({"frame": record["frame"]} if "frame" in record else {}),
            "height": record["size_hw"][0],
            "width": record["size_hw"][1],
        }
        for record in records
    ]
    return {"images": images, "categories": [{"id": place, "name": name} for place, name in enumerate(classes, 1)]}


def coco_results(records: Sequence[dict[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's results list: one entry per detection, ``bbox`` as left, top, width, height."""
    category = {name: place for place, name in enumerate(classes, 1)}
    return [
        {
            "image_id": record["place"],
            "category_id": category[label],
            "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
            "score": score,
        }
        for record in records
        for (left, top, right, bottom), score, label in zip(record["boxes_xyxy"], record["scores"], record["labels"])
    ]


class _AnnotatedFolder:
    """Writes annotated pictures as they come, and a video when its last frame is there.

    Args:
        folder: where to; None writes nothing.
        sources: all of them; their places relative to each other are kept.
        classes: the detector's class names.

    Raises:
        InputError: when an output would overwrite a source.
    """

    def __init__(self, folder: Path | None, sources: Sequence[Source], classes: Sequence[str]) -> None:
        self.folder, self.classes = folder, classes
        self._videos: dict[Source, cv2.VideoWriter] = {}
        self._targets = {} if folder is None else _targets(folder, sources)
        self._part: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> _AnnotatedFolder:
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what is unfinished."""
        for writer in self._videos.values():
            writer.release()
        if self._part is not None:
            self._part.cleanup()

    def add(self, frame: Frame, detections: Detections) -> None:
        if self.folder is None:
            return
        picture = annotated(frame.picture, detections, self.classes)
        if frame.source.kind == "image":
            target = self._targets[frame.source]
            content = cv2.imencode(target.suffix, picture)[1].tobytes()
            write_atomic(target, lambda temporary: temporary.write_bytes(content))
        else:
            self._writer(frame).write(picture)

    def finish(self) -> None:
        """Put the videos in their places."""
        for source, writer in self._videos.items():
            writer.release()
            target = self._targets[source]
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._unfinished(source), target)

    def _writer(self, frame: Frame) -> cv2.VideoWriter:
        if frame.source not in self._videos:
            if self._part is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._part = tempfile.TemporaryDirectory(prefix=".part.", dir=self.folder)
            height, width = frame.picture.shape[:2]
            codec = cv2.VideoWriter_fourcc(*"MJPG")  # every build of OpenCV can write it
            path = str(self._unfinished(frame.source))
            self._videos[frame.source] = cv2.VideoWriter(path, codec, frame.fps or 30.0, (width, height))
        return self._videos[frame.source]

    def _unfinished(self, source: Source) -> Path:
        return Path(self._part.name) / f"{list(self._targets).index(source)}.avi"


def _targets(folder: Path, sources: Sequence[Source]) -> dict[Source, Path]:
    """The annotated file of each source; what lay in one folder lies in one folder again."""
    if sources[0].kind == "stream":
        return {sources[0]: folder / "stream.avi"}
    paths = [Path(os.path.abspath(source.name)) for source in sources]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    targets = {source: folder / _output_name(source, path.relative_to(root)) for source, path in zip(sources, paths)}
    for target in targets.values():
        if target.exists() and any(target.samefile(path) for path in paths if path.name == target.name):
            raise InputError(f"{target}: the annotated picture would overwrite its source; choose another --out")
    return targets


def _output_name(source: Source, path: Path) -> Path:
    if source.kind == "video":
        return path if path.suffix.lower() == ".avi" else path.with_name(f"{path.name}.avi")
    return path if path.suffix.lower() in WRITABLE else path.with_name(f"{path.name}.jpg")
