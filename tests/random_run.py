"""A made-up run with its test images and detections, whose results are computed by the evaluator itself."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from duet.config import EvaluationSettings
from duet.datasets.images import LabelledImage
from duet.detectors.base import Detections
from duet.evaluation.indices import compute_indices
from duet.evaluation.replicates import RunDetections
from duet.evaluation.run import score_domain, score_slice
from duet.results import class_cells, grid_cells, series_entry, stage_entry
from duet.series import Role, Series, Task

SERIES = Series("random", (Task("day", ("a", "b")), Task("night", ("c",)), Task("fog", ("d", "e"))))


def random_boxes(generator, count, size=100):
    corner = generator.uniform(0, size * 0.6, (count, 2))
    return np.concatenate([corner, corner + generator.uniform(size / 10, size * 0.4, (count, 2))], axis=1)


def random_images(generator, count, classes, name="image", most=4, ignored=0.15):
    """Images with 0 to ``most`` boxes; some are difficult, some crowds."""
    images = []
    for number in range(count):
        boxes = int(generator.integers(0, most + 1))
        images.append(
            LabelledImage(
                Path(f"{name}-{number}.jpg"),
                (100, 100),
                random_boxes(generator, boxes),
                tuple(generator.choice(classes, boxes).tolist()),
                ("file, line 1",) * boxes,
                difficult=generator.random(boxes) < ignored,
                crowd=generator.random(boxes) < ignored,
            )
        )
    return images


def random_detections(generator, images, classes, known=None, skill=0.7, others=5, decimals=None):
    """Detections near some of the boxes, and others anywhere; ``decimals`` rounds scores so that many are equal."""
    known = classes if known is None else known
    return [_on_image(generator, image, known, skill, others, decimals) for image in images]


def _on_image(generator, image, known, skill, others, decimals):
    places = [place for place, label in enumerate(image.labels) if label in known and generator.random() < skill]
    near = image.boxes_xyxy[places] + generator.normal(0, 2.5, (len(places), 4))
    labels = [image.labels[place] for place in places] + generator.choice(known, others).tolist()
    scores = np.concatenate([generator.uniform(0.3, 1, len(places)), generator.uniform(0, 0.6, others)])
    if decimals is not None:
        scores = scores.round(decimals)
    order = np.argsort(-scores, kind="stable")
    boxes = np.concatenate([near, random_boxes(generator, others)])[order]
    return Detections(
        boxes.astype(np.float32), scores[order].astype(np.float32), tuple(labels[place] for place in order)
    )


class Fixed:
    """A detector that finds what it was told, image by image."""

    def __init__(self, images, detections):
        self.found = {image.path: item for image, item in zip(images, detections)}

    def predict(self, paths, image_size, settings):
        return [(path, self.found[path]) for path in paths]


@dataclass
class RandomRun:
    """Results as in results.json, the detections behind them, and the test images by domain."""

    results: dict
    found: RunDetections
    images: dict


def make_run(seed=0, count=12, own_images=False, kind="joint", series=SERIES, joint=False):
    """A run over ``count`` test images per domain; ``joint`` makes a joint run of one stage 0."""
    generator = np.random.default_rng(seed)
    settings = EvaluationSettings(drop_images_without_class=own_images)
    images = {name: random_images(generator, count, series.classes, name) for name in series.domains}

    def detector(known, skill):
        return {
            name: random_detections(generator, items, series.classes, known, skill) for name, items in images.items()
        }

    def scored(found):
        return {
            name: score_domain(Fixed(images[name], items), name, images[name], series.classes, 64, settings)
            for name, items in found.items()
        }

    best = detector(series.classes, 0.9)
    numbers = [0] if joint else range(1, len(series) + 1)
    stages = [best if joint else detector(series.classes_until(number), 0.7) for number in numbers]
    entries = []
    for number, found in zip(numbers, stages):
        slices = series.slices(number) if number else ()
        entries.append(stage_entry(number, series, slices, scored(found), None, [], {}))
    scores, reference = scored(best), {f"joint/{name}": items for name, items in best.items()}
    needed = dict.fromkeys(
        item.slice
        for number in range(2, len(series) + 1)
        for item in series.slices(number)
        if item.role in (Role.UNSEEN, Role.NEW)
    )
    slices = []
    for item in needed:
        source = scores
        if kind == "individual":
            own = random_detections(generator, images[item.domain], series.classes, item.classes, 0.9)
            reference[f"individual/{item.label}"] = own
            source = scored({item.domain: own})
        slices.append(score_slice(source, item))
    results = {
        "series": series_entry(series, 64),
        "stages": entries,
        "reference": {"kind": kind, "slices": slices, "grid": grid_cells(series, scores)},
    }
    if kind == "none":
        results["reference"], reference = {"kind": "none", "slices": [], "grid": []}, {}
    results["indices"] = {metric: compute_indices(results, metric).to_dict() for metric in ("map50", "map50_95")}
    assert len(class_cells(series, scores)) == len(series.domains) * len(series.classes)
    return RandomRun(results, RunDetections(stages, reference), images)
