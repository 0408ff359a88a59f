"""What an update is judged by: scores before and after on validation sets, and the indices made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from duet.config import RunConfig
from duet.datasets.images import LabelledImage
from duet.detectors.base import Detector
from duet.errors import InputError
from duet.evaluation.average_precision import mean_precision
from duet.evaluation.run import score_domain
from duet.monitor import Monitor


def indices_of(scores: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What an update kept and learned, from its scores before and after (mAP50).

    ``kept`` is the mean over validation sets of mAP after / before on the old classes, each capped at 1, so that one
    set's gain hides no loss on another; ``new`` the mean over the sets of the mAP on the new classes; ``overall`` the
    mean over all these terms. Sets without a box of either, or with a mAP of 0 before, have no term; an index without a
    term is None.
    """
    kept = [
        min(row["after"] / row["before"], 1.0)
        for row in scores
        if row["kind"] == "old" and row["after"] is not None and row["before"]
    ]
    new = [row["after"] for row in scores if row["kind"] == "new" and row["after"] is not None]
    return {name: _mean(values) for name, values in (("kept", kept), ("new", new), ("overall", kept + new))}


def refuse_unscorable(
    needed: Sequence[str], old: Sequence[str], new: Sequence[str], sets: Mapping[str, Sequence[LabelledImage]]
) -> None:
    """Before anything is trained: an index that is needed must have a box to be made of.

    Args:
        needed: of ``kept``, ``new`` and ``overall``.
        old: the classes that are known.
        new: those to be learned.
        sets: the validation sets by name.

    Raises:
        InputError: naming the index.
    """
    chosen = [image.chosen(~image.ignored) for images in sets.values() for image in images]
    present = {label for image in chosen for label in image.labels}
    terms = {"kept": present & set(old), "new": present & set(new)}
    terms["overall"] = terms["kept"] | terms["new"]
    for name in needed:
        if not terms[name]:
            which = {"kept": "an old class", "new": "a new class"}.get(name, "any class")
            raise InputError(f"'{name}' cannot be computed: no validation set has a box of {which}")


def scores_before_and_after(
    before: Detector,
    after: Detector,
    sets: Mapping[str, Sequence[LabelledImage]],
    config: RunConfig,
    monitor: Monitor,
) -> list[dict[str, Any]]:
    """One row per validation set and kind of classes, old or new, that has a box there.

    Args:
        before: the deployed detector.
        after: the updated one; its further classes are the new ones.
        sets: the validation sets by name.
        config: input size and thresholds.
        monitor: progress.

    Returns:
        The ``scores`` of update.json (docs/results.md).
    """
    new = after.classes[len(before.classes) :]
    rows = []
    for name, images in sets.items():
        values = []
        for title, detector in (("before", before), ("after", after)):
            monitor.begin(f"evaluate {title}: {name}", len(images))
            size = config.train.image_size
            scored = score_domain(detector, name, images, after.classes, size, config.evaluation)
            values.append(scored.classes)
        for kind, classes in (("old", before.classes), ("new", new)):
            present = [label for label in classes if values[1][label].boxes > 0]
            if present:
                was, now = (mean_precision(value, present) for value in values)
                rows.append(
                    {
                        "validation": name,
                        "kind": kind,
                        "classes": present,
                        "images": len(images),
                        "boxes": sum(values[1][label].boxes for label in present),
                        "before": was[0] if kind == "old" else None,
                        "after": now[0],
                        "after_50_95": now[1],
                    }
                )
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
