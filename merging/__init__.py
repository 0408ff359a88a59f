"""Model merging: name → tensor mappings in, a new mapping out. Knows no detector and no file format but safetensors."""

from merging._first import duet_merging, merge, task_arithmetic, weight_averaging
from merging.result import MergeResult
from merging.sign_conflict import sign_conflict_per_layer, sign_conflict_rate
from merging.task_vector import apply_task_vector, task_vector

__all__ = [
    "MergeResult",
    "apply_task_vector",
    "duet_merging",
    "merge",
    "sign_conflict_per_layer",
    "sign_conflict_rate",
    "task_arithmetic",
    "task_vector",
    "weight_averaging",
]
