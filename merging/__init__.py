"""Model merging: name → tensor mappings in, a new mapping out. Knows no detector and no file format but safetensors."""

from merging.adamerging import adamerging
from merging.adaptation import UnlabelledTask
from merging.adapted import AdaptedMerge
from merging.analysis import Comparison, Relation, diff
from merging.averaging import weight_averaging
from merging.concrete import concrete_mask
from merging.concrete_merging import MaskSettings, concrete_adamerging, concrete_task_arithmetic
from merging.dare import dare_merging
from merging.duet import duet_merging
from merging.emr import EmrParts, emr_merging, emr_parts
from merging.entropy import entropy_loss, first_token_entropy
from merging.family import Family, open_module_family
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
    "AdaptedMerge",
    "EmrParts",
    "Family",
    "MaskSettings",
    "MergeResult",
    "MergeSettings",
    "UnlabelledTask",
    "adamerging",
    "apply_task_vector",
    "concrete_adamerging",
    "concrete_mask",
    "concrete_task_arithmetic",
    "dare_merging",
    "duet_merging",
    "emr_merging",
    "emr_parts",
    "entropy_loss",
    "first_token_entropy",
    "fisher_merging",
    "magmax_merging",
    "merge",
    "open_module_family",
    "sign_conflict_per_layer",
    "sign_conflict_rate",
    "slerp_merging",
    "task_arithmetic",
    "task_vector",
    "ties_merging",
    "weight_averaging",
]
