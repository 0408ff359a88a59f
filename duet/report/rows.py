"""The lines of every table, read from a results mapping (docs/results.md) for terminal, CSV and page alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duet.evaluation.indices import mean_map
from duet.series import Role, Slice

ABSENT = "–"
JOINT = "joint"
FEW_BOXES = 10


@dataclass(frozen=True)
class IndexName:
    """How an index is called and explained.

    Args:
        key: its key in ``indices.map50``.
        title: its short name.
        meaning: one sentence.
        ratio: whether it is a share of something (1 = as good as that); otherwise its unit is mAP.
    """

    key: str
    title: str
    meaning: str
    ratio: bool = True


INDEX_NAMES = (
    IndexName(
        "overall",
        "Overall",
        "Final mAP as a share of the joint model's, over every class in every domain: what counts in the end.",
    ),
    IndexName("rai", "RAI", "Mean of Avg RI and Avg GI. It leaves out what is newly taught: read it beside NI."),
    IndexName("rai_capped", "RAI, capped", "RAI with each of its ratios cut at 1 first."),
    IndexName("ni", "NI", "New classes: mAP right after they were taught, as a share of the reference."),
    IndexName("avg_ri", "Avg RI", "Retention: how much of each earlier task's mAP is left at the end."),
    IndexName(
        "avg_gi",
        "Avg GI",
        "Generalization: mAP of classes in domains where they were never taught, as a share of the reference.",
    ),
    IndexName("avg_gi_capped", "Avg GI, capped", "Avg GI with each of its ratios cut at 1 first."),
    IndexName("forgetting", "Forgetting", "Best earlier mAP of each earlier task minus its final mAP.", False),
    IndexName("bwt", "BWT", "Backward transfer: final mAP of each earlier task minus its first.", False),
    IndexName("fwt", "FWT", "Forward transfer: mAP of old classes in a domain that is still to come.", False),
)

_TERM_NAMES = {name.key.removeprefix("avg_"): name for name in INDEX_NAMES}

MEAN_MAP = IndexName("mean_map", "Mean mAP", "Plain mean of the final mAP over the class × domain grid.", False)


@dataclass(frozen=True)
class SliceRow:
    """One slice after one task; mAP values are fractions, absent ones None.

    Args:
        role: new, old, unseen or extra; joint for a cell of a joint run.
        domain: name of the domain.
        classes: names of the classes.
        map50: mAP at IoU 0.5.
        map50_95: mean mAP over IoU 0.5 … 0.95.
        images: test images, or None.
        boxes: test boxes of these classes, or None.
        reference: the mAP50 it is compared with.
        compared_with: what that is, such as ``joint`` or ``task 1``; empty without a reference.
    """

    role: str
    domain: str
    classes: tuple[str, ...]
    map50: float | None
    map50_95: float | None
    images: int | None
    boxes: int | None
    reference: float | None
    compared_with: str

    @property
    def label(self) -> str:
        """Domain and classes as short text."""
        return slice_label(self.domain, self.classes)

    @property
    def ratio(self) -> float | None:
        """Share of the reference, mAP50 / reference; None when either is absent or the reference is 0."""
        return self.map50 / self.reference if self.map50 is not None and self.reference else None


def slice_rows(results: Mapping[str, Any], task: int) -> list[SliceRow]:
    """The slices after one task; the grid's cells of a joint run, whose stage has no slices.

    An old slice is compared with its own mAP right after the task that taught it (after the last task the ratio
    is its RI), a new or unseen slice with the run's reference (the ratio is a term of NI or GI).

    Args:
        results: the content of results.json.
        task: number of the stage, from 1; 0 for a joint run.

    Raises:
        KeyError: when that stage is not in the results.
    """
    stage = stage_of(results, task)
    items = stage["slices"] or [{"role": JOINT, **cell} for cell in stage.get("grid") or ()]
    return [_slice_row(results, item) for item in items]


def stage_of(results: Mapping[str, Any], task: int) -> Mapping[str, Any]:
    """The stage with this task number.

    Raises:
        KeyError: when it is not in the results.
    """
    for stage in results["stages"]:
        if stage["task"] == task:
            return stage
    raise KeyError(f"results have the stages {[stage['task'] for stage in results['stages']]}, not {task}")


def stage_title(results: Mapping[str, Any], task: int) -> str:
    """Such as ``Task 2 · night · 3 4 5``; ``All tasks at once`` for a joint run's stage."""
    if task == 0:
        return "All tasks at once"
    item = next(item for item in results["series"]["tasks"] if item["task"] == task)
    return f"Task {task} · {item['domain']} · {class_list(item['classes'])}"


def index_value(results: Mapping[str, Any], key: str, metric: str) -> float | None:
    """One index (or ``mean_map``) of the results for ``map50`` or ``map50_95``."""
    if key == MEAN_MAP.key:
        return mean_map(results, metric)
    return index_block(results, metric).get(key)


def index_block(results: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    """``indices`` of one metric; empty when none have been written yet."""
    return (results.get("indices") or {}).get(metric) or {}


def skipped_lines(results: Mapping[str, Any], metric: str = "map50") -> list[str]:
    """One line for each index and reason for which terms were left out of its mean, with their slices."""
    groups: dict[tuple[IndexName, str], list[str]] = {}
    for term in index_block(results, metric).get("skipped") or ():
        label = f"{slice_label(term['domain'], term['classes'])} after task {term['task']}"
        groups.setdefault((_TERM_NAMES[term["index"]], term["reason"]), []).append(label)
    lines = []
    for (name, reason), labels in groups.items():
        more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
        empty = index_value(results, name.key, metric) is None
        what = "cannot be computed" if empty else f"leaves out {', '.join(labels[:3])}{more}"
        lines.append(f"{name.title} {what}: {reason}.")
    return lines


def few_boxes_lines(results: Mapping[str, Any]) -> list[str]:
    """One line for each scored domain that has classes with fewer than ten test boxes: their mAP is mostly chance.

    Classes without any box are not named; they are left out of a mean.
    """
    scored: dict[str, dict[str, None]] = {}
    for stage in results["stages"]:
        for item in stage["slices"] or stage.get("grid") or ():
            scored.setdefault(item["domain"], {}).update(dict.fromkeys(item["classes"]))
    counts = {(cell["domain"], cell["class"]): cell["boxes"] for cell in results["stages"][-1].get("class_ap") or ()}
    lines = []
    for domain, classes in scored.items():
        few = [f"{name} ({counts[domain, name]})" for name in classes if 0 < counts.get((domain, name), 0) < FEW_BOXES]
        if few:
            lines.append(f"Fewer than {FEW_BOXES} test boxes in {domain}: {', '.join(few)}; their mAP says little.")
    return lines


def sign_conflict_rates(results: Mapping[str, Any]) -> list[tuple[int, float | None]]:
    """(task, share of shared scalars whose update turned against the previous one) of every stage that merged."""
    return [(stage["task"], stage["merge"].get("sign_conflict_rate")) for stage in results["stages"] if stage["merge"]]


def learned_classes(results: Mapping[str, Any], task: int) -> tuple[str, ...]:
    """Class names the detector has been taught after this stage, in learning order; all of them for stage 0."""
    tasks = results["series"]["tasks"]
    return tuple(name for item in tasks if task == 0 or item["task"] <= task for name in item["classes"])


def grid_values(stage: Mapping[str, Any], metric: str = "map50") -> dict[tuple[str, int], float | None]:
    """The mAP of every grid cell of a stage, by domain and task number; empty when no grid was scored."""
    return {(cell["domain"], cell["task"]): cell[metric] for cell in stage.get("grid") or ()}


def own_slice_map(stage: Mapping[str, Any], task: Mapping[str, Any], metric: str = "map50") -> float | None:
    """The mAP of D_i[C_i] after a stage, from its slices or else its grid; None when neither has it."""
    for item in (*stage["slices"], *(stage.get("grid") or ())):
        if item["domain"] == task["domain"] and set(item["classes"]) == set(task["classes"]):
            return item[metric]
    return None


def number(value: float | None, digits: int = 3) -> str:
    """A value with fixed decimals, or a dash when it is absent."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return ABSENT if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, such as ``+0.012`` or ``−0.012``."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def count(value: int | None) -> str:
    """A whole number with thin groups of three, or a dash when it is absent."""
    return ABSENT if value is None else f"{value:,}".replace(",", "\u202f")


def counted(value: int, what: str) -> str:
    """A number of things: ``1 object``, ``1,204 objects``."""
    return f"{value:,} {what}{'' if value == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Such as ``42 s``, ``7 min 05 s`` or ``1 h 02 min``."""
    if seconds is None:
        return ABSENT
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def slice_label(domain: str, classes: Sequence[str]) -> str:
    """Such as ``night[3 4 5]``."""
    return Slice(domain, tuple(classes)).label


def class_list(classes: Iterable[str]) -> str:
    """The names side by side, commas once a name has a space in it; the first and the last of a long list."""
    names = list(classes)
    text = (", " if any(" " in name for name in names) else " ").join(names)
    return text if len(text) <= 24 or len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"


def _slice_row(results: Mapping[str, Any], item: Mapping[str, Any]) -> SliceRow:
    reference, compared_with = _reference(results, item)
    return SliceRow(
        role=item["role"],
        domain=item["domain"],
        classes=tuple(item["classes"]),
        map50=item["map50"],
        map50_95=item["map50_95"],
        images=item.get("images"),
        boxes=item.get("boxes"),
        reference=reference,
        compared_with=compared_with if reference is not None else "",
    )


def _reference(results: Mapping[str, Any], item: Mapping[str, Any]) -> tuple[float | None, str]:
    if item["role"] == Role.OLD.value:
        for stage in results["stages"]:
            task = next((task for task in results["series"]["tasks"] if task["task"] == stage["task"]), None)
            if task and task["domain"] == item["domain"] and set(task["classes"]) == set(item["classes"]):
                return own_slice_map(stage, task), f"task {stage['task']}"
        return None, ""
    reference = results.get("reference") or {}
    for known in reference.get("slices") or ():
        if known["domain"] == item["domain"] and set(known["classes"]) == set(item["classes"]):
            return known["map50"], str(reference.get("kind", ""))
    return None, ""
