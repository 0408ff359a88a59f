"""Model merging: name → tensor mappings in, a new mapping out. Knows no detector and no file format but safetensors."""

from merging.analysis import Comparison, Relation, diff
from merging.averaging import weight_averaging
from merging.dare import dare_merging
from merging.duet import duet_merging
from merging.emr import EmrParts, emr_merging, emr_parts
from merging.files import MergedFiles, merge_files, plan_files
from merging.fisher import fisher_merging
from merging.magmax import magmax_merging
from merging.merger import MergeSettings
from merging.registry import METHODS, merge
from merging.result import MergeResult
from merging.sign_conflict import sign_conflict_per_layer, sign_conflict_rate
from merging.slerp import slerp_merging
from merging.task_arithmetic import task_arithmetic
from merging.task_vector import apply_task_vector, task_vector
from merging.ties import ties_merging

__all__ = [
    "Comparison",
    "MergedFiles",
    "Relation",
    "diff",
    "merge_files",
    "plan_files",
    "METHODS",
    "EmrParts",
    "MergeResult",
    "MergeSettings",
    "apply_task_vector",
    "dare_merging",
    "duet_merging",
    "emr_merging",
    "emr_parts",
    "fisher_merging",
    "magmax_merging",
    "merge",
    "sign_conflict_per_layer",
    "sign_conflict_rate",
    "slerp_merging",
    "task_arithmetic",
    "task_vector",
    "ties_merging",
    "weight_averaging",
]
