"""Replay of kept images: an upper bound that breaks the exemplar-free rule.

Ten images per class of every earlier task, with that task's labels only, are trained on again in each stage.
"""

from duet.config import ExemplarSettings, MethodSettings

METHOD = MethodSettings(
    name="replay",
    old_rows="trained",
    negatives="all",
    batch_norm="current",
    exemplars=ExemplarSettings(images_per_class=10),
)
