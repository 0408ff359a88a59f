"""Elastic response distillation (Feng et al., CVPR 2022): responses of the previous model that stand out are kept.

The detector's own loss leaves the old classes out, as in the authors' code, whose old outputs learn from the teacher
only.
"""

from duet.config import DistillationSettings, MethodSettings

METHOD = MethodSettings(
    name="erd",
    old_rows="trained",
    negatives="new",
    batch_norm="current",
    distillation=DistillationSettings(kind="erd", weight=1.0),
)
