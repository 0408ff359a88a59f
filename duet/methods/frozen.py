"""Backbone and neck frozen after the first task, BatchNorm statistics included; only new class rows are learned.

Old classes are kept exactly (towers, box branch and old rows are those of the previous model), so RI is 1 by
construction; what can be learned is limited to a linear read-out of the first task's features.
"""

from duet.config import MethodSettings

METHOD = MethodSettings(
    name="frozen", towers="old", freeze_shared=True, freeze_towers=True, batch_norm="freeze", negatives="new"
)
