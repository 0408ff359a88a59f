"""Learning without forgetting (Li and Hoiem, ECCV 2016): sequential fine-tuning with distilled old-class scores.

The previous model teaches the old classes on the new images; nothing is merged, frozen or restored.
"""

from duet.config import DistillationSettings, MethodSettings

METHOD = MethodSettings(
    name="lwf",
    old_rows="trained",
    negatives="all",
    batch_norm="current",
    distillation=DistillationSettings(kind="lwf", weight=1.0),
)
