"""Pseudo-labels: the previous model's confident detections of old classes become labels on the new images.

Unlabelled old objects are then no background. A detection that overlaps a labelled box of a new class is left out. Each
stage leaves a page that shows what was labelled.
"""

from duet.config import MethodSettings, PseudoLabelSettings

METHOD = MethodSettings(
    name="pseudo-label",
    old_rows="trained",
    negatives="all",
    batch_norm="current",
    pseudo_labels=PseudoLabelSettings(confidence=0.5, overlap=0.3),
)
