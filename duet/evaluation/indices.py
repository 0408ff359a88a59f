"""The indices of dual incremental detection, from the content of results.json alone (docs/results.md).

Every mAP is a fraction from 0 to 1. R_i is the mAP of D_i[C_i] right after stage i, after the merge. T is the
number of finished stages, so that the indices of an unfinished run are those of the series cut off after task T:
Overall then covers the first T domains and the classes of the first T tasks.

A term whose mAP or whose divisor is null, or whose divisor is zero, has no value: it leaves the mean and is named
in ``skipped`` together with the reason. An index without any term is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from duet.series import Role

Metric = Literal["map50", "map50_95"]
METRICS: tuple[Metric, ...] = get_args(Metric)

_CLASS_KEY = {"map50": "ap50", "map50_95": "ap50_95"}
_NO_BOX = "no test box of these classes"


@dataclass(frozen=True)
class Term:
    """One summand of an index.

    Args:
        index: the index it belongs to: ri, gi, ni, overall, forgetting, bwt or fwt.
        task: number of the task (from 1) after which, or for which, it was measured; 0 in a joint run.
        domain: domain of its slice.
        classes: class names of its slice.
        value: a ratio (ri, gi, ni, overall) or an mAP (forgetting, bwt, fwt); None when it has none.
        reason: why there is no value; empty otherwise.
    """

    index: str
    task: int
    domain: str
    classes: tuple[str, ...]
    value: float | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The form of an entry of ``ri`` and ``gi``."""
        return {"task": self.task, "domain": self.domain, "classes": list(self.classes), "value": self.value}

    def to_skipped(self) -> dict[str, Any]:
        """The form of an entry of ``skipped``."""
        where = self.to_dict()
        del where["value"]
        return {"index": self.index, **where, "reason": self.reason}


@dataclass(frozen=True)
class Indices:
    """Every index of one run for one metric; formulas in the fields' order in ``docs/results.md``.

    ``tasks`` is T; ``skipped`` holds the terms that were left out of a mean. In a joint run everything but
    ``overall`` is None, since no task follows another.
    """

    tasks: int
    ri: tuple[Term, ...] | None = None
    avg_ri: float | None = None
    gi: tuple[Term, ...] | None = None
    avg_gi: float | None = None
    avg_gi_capped: float | None = None
    rai: float | None = None
    rai_capped: float | None = None
    ni: float | None = None
    overall: float | None = None
    forgetting: float | None = None
    bwt: float | None = None
    fwt: float | None = None
    skipped: tuple[Term, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The form of ``indices.map50`` in results.json, made of JSON's own types only."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("ri", "gi"):
            terms = values[name]
            values[name] = None if terms is None else [term.to_dict() for term in terms]
        return values | {"skipped": [term.to_skipped() for term in self.skipped]}


def compute_indices(results: Mapping[str, Any], metric: Metric) -> Indices:
    """Compute every index from ``series``, ``stages`` and ``reference``; None where a mean has no term.

    Avg RI, Avg GI, NI and Overall are plain means of their terms; RAI = (Avg RI + Avg GI) / 2. GI's terms are the
    slices with role ``unseen`` that the stages t ≥ 2 list. Capped means: each ratio is cut at 1 before the mean.

    Args:
        results: the content of results.json, finished or not; ``indices`` and ``timing`` are not read.
        metric: mAP at IoU 0.5, or the mean over IoU 0.5 … 0.95.

    Raises:
        ValueError: when a slice, a grid cell or a class that an index needs is not in the results, a value is no
            fraction, the stages are not the tasks 1 … T (or one stage with task 0), or the metric is unknown.
    """
    run = _Run(results, metric)
    overall = tuple(run.overall())
    if run.joint:
        return Indices(len(run.tasks), overall=_mean(overall), skipped=tuple(t for t in overall if t.value is None))
    ri, gi, ni = tuple(run.retention()), tuple(run.generalization()), tuple(run.new_classes())
    forgetting, bwt, fwt = tuple(run.forgetting()), tuple(run.backward()), tuple(run.forward())
    terms = (*ri, *gi, *ni, *overall, *forgetting, *bwt, *fwt)
    return Indices(
        tasks=len(run.tasks),
        ri=ri,
        avg_ri=_mean(ri),
        gi=gi,
        avg_gi=_mean(gi),
        avg_gi_capped=_mean(gi, cap=1.0),
        rai=_half_sum(_mean(ri), _mean(gi)),
        rai_capped=_half_sum(_mean(ri, cap=1.0), _mean(gi, cap=1.0)),
        ni=_mean(ni),
        overall=_mean(overall),
        forgetting=_mean(forgetting),
        bwt=_mean(bwt),
        fwt=_mean(fwt),
        skipped=tuple(term for term in terms if term.value is None),
    )


def mean_map(results: Mapping[str, Any], metric: Metric = "map50") -> float | None:
    """Mean mAP (0 to 1) over the class × domain grid after the last stage; cells without a test box are left out.

    Args:
        results: the content of results.json; an unfinished run counts its first T tasks and domains only.
        metric: which mAP.

    Returns:
        The mean, or None when no grid was scored or no cell has a test box.
    """
    values = _Run(results, metric).final_maps()
    return sum(values) / len(values) if values else None


class _Run:
    """One metric of a results mapping, looked up by domain and classes; each method yields an index's terms."""

    def __init__(self, results: Mapping[str, Any], metric: Metric) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {list(METRICS)}, got {metric!r}")
        stages, tasks = results["stages"], results["series"]["tasks"]
        self.joint = _refuse_other_order(stages, tasks)
        self.tasks = tasks if self.joint else tasks[: len(stages)]
        self.last = stages[-1]["task"]
        self._stages = {stage["task"]: stage for stage in stages}
        self._metric = metric
        self._scores = {number: self._scored(number) for number in self._stages}
        reference = results.get("reference") or {}
        self._grid = _by_slice(stages[-1].get("grid"), metric, f"stage {self.last}, grid")
        self._reference = _by_slice(reference.get("slices"), metric, "reference")
        self._reference_grid = _by_slice(reference.get("grid"), metric, "reference grid")

    def retention(self) -> Iterator[Term]:
        """RI_i = final mAP of D_i[C_i] / R_i, i < T (DuET, A2); ratio."""
        for task in self.tasks[:-1]:
            value, first = self._at(self.last, task), self._at(task["task"], task)
            yield _ratio("ri", task["task"], task, value, first, "mAP right after its stage")

    def generalization(self) -> Iterator[Term]:
        """GI = mAP of an unseen slice after stage t / reference mAP of that slice, t ≥ 2 (DuET, A6); ratio."""
        for task in self.tasks[1:]:
            number = task["task"]
            for item in self._stages[number]["slices"]:
                if item["role"] == Role.UNSEEN.value:
                    base = self._reference.get(_key(item))
                    yield _ratio("gi", number, item, self._at(number, item), base, "reference")

    def new_classes(self) -> Iterator[Term]:
        """NI's terms: R_t / reference mAP of D_t[C_t], t ≥ 2; ratio."""
        for task in self.tasks[1:]:
            base = self._reference.get(_key(task))
            yield _ratio("ni", task["task"], task, self._at(task["task"], task), base, "reference")

    def overall(self) -> Iterator[Term]:
        """Overall's terms: final mAP of a grid cell / the joint model's mAP in that cell; ratio."""
        for cell in self._cells():
            base = self._reference_grid.get(_key(cell))
            if self._grid:
                yield _ratio("overall", self.last, cell, self._cell(cell), base, "joint model's mAP")
            else:
                yield _no_term("overall", self.last, cell, "no grid was scored")

    def forgetting(self) -> Iterator[Term]:
        """Best mAP of D_i[C_i] after any stage i … T-1, minus the final one, i < T; mAP."""
        for task in self.tasks[:-1]:
            earlier = [self._at(number, task) for number in range(task["task"], self.last)]
            best = max((value for value in earlier if value is not None), default=None)
            yield _difference("forgetting", task, best, self._at(self.last, task))

    def backward(self) -> Iterator[Term]:
        """Final mAP of D_i[C_i] minus R_i, i < T (backward transfer; negative when forgetting); mAP."""
        for task in self.tasks[:-1]:
            yield _difference("bwt", task, self._at(self.last, task), self._at(task["task"], task))

    def forward(self) -> Iterator[Term]:
        """FWT's terms: mAP of D_t[C_1 … C_(t-1)] after stage t-1, t ≥ 2: old classes in a new domain; mAP."""
        for position, task in enumerate(self.tasks[1:], start=1):
            classes = [name for earlier in self.tasks[:position] for name in earlier["classes"]]
            yield self._forward_term(task, classes)

    def final_maps(self) -> list[float]:
        """The final mAP of every grid cell that has a test box; empty when no grid was scored."""
        values = [self._cell(cell) for cell in self._cells()] if self._grid else []
        return [value for value in values if value is not None]

    def _cells(self) -> list[dict[str, Any]]:
        domains = [task["domain"] for task in self.tasks]
        return [{"domain": domain, "classes": task["classes"]} for domain in domains for task in self.tasks]

    def _cell(self, cell: Mapping[str, Any]) -> float | None:
        if _key(cell) not in self._grid:
            raise ValueError(f"stage {self.last}, grid: cell {cell['domain']}{cell['classes']} is missing")
        return self._grid[_key(cell)]

    def _scored(self, number: int) -> dict[tuple, float | None]:
        stage = self._stages[number]
        grid = _by_slice(stage.get("grid"), self._metric, f"stage {number}, grid")
        return grid | _by_slice(stage["slices"], self._metric, f"stage {number}, slices")

    def _at(self, number: int, item: Mapping[str, Any]) -> float | None:
        if _key(item) not in self._scores[number]:
            label = f"{item['domain']}{list(item['classes'])}"
            raise ValueError(f"stage {number}: slice {label} is missing from slices and grid")
        return self._scores[number][_key(item)]

    def _forward_term(self, task: Mapping[str, Any], classes: list[str]) -> Term:
        number, domain = task["task"] - 1, task["domain"]
        rows = [row for row in self._stages[number].get("class_ap") or () if row["domain"] == domain]
        cell, where = {"domain": domain, "classes": classes}, f"stage {number}, class_ap of {domain}"
        if not rows:
            return _no_term("fwt", task["task"], cell, f"domain not scored after task {number}")
        scores = {row["class"]: _fraction(row, _CLASS_KEY[self._metric], where) for row in rows}
        missing = [name for name in classes if name not in scores]
        if missing:
            raise ValueError(f"{where}: class '{missing[0]}' is missing")
        values = [scores[name] for name in classes if scores[name] is not None]
        if not values:
            return _no_term("fwt", task["task"], cell, _NO_BOX)
        return Term("fwt", task["task"], domain, tuple(classes), sum(values) / len(values))


def _refuse_other_order(stages: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it is a joint run; refuses anything but one stage 0 or the stages 1 … T."""
    numbers = [stage["task"] for stage in stages]
    joint = numbers == [0]
    if not joint and (not numbers or numbers != [task["task"] for task in tasks[: len(numbers)]]):
        raise ValueError(f"stages: expected task 0 alone or tasks 1 … T in order, got {numbers}")
    return joint


def _key(item: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    return item["domain"], tuple(sorted(item["classes"]))


def _by_slice(items: Iterable[Mapping[str, Any]] | None, metric: str, where: str) -> dict[tuple, float | None]:
    return {_key(item): _fraction(item, metric, f"{where}, {item['domain']}") for item in items or ()}


def _fraction(item: Mapping[str, Any], key: str, where: str) -> float | None:
    if key not in item:
        raise ValueError(f"{where}: '{key}' is missing; a value that is absent must be null")
    value = item[key]
    # A mean of many class APs may exceed 1 by rounding; NaN fails every comparison.
    if value is not None and not 0.0 <= value <= 1.0 + 1e-6:
        raise ValueError(f"{where}: expected {key} from 0 to 1 or null, got {value!r}")
    return value


def _ratio(index: str, task: int, item: Mapping, value: float | None, base: float | None, of: str) -> Term:
    if value is None:
        return _no_term(index, task, item, _NO_BOX)
    if not base:
        return _no_term(index, task, item, f"no {of}" if base is None else f"{of} is 0")
    return Term(index, task, item["domain"], tuple(item["classes"]), value / base)


def _difference(index: str, task: Mapping[str, Any], value: float | None, other: float | None) -> Term:
    if value is None or other is None:
        return _no_term(index, task["task"], task, _NO_BOX)
    return Term(index, task["task"], task["domain"], tuple(task["classes"]), value - other)


def _no_term(index: str, task: int, item: Mapping[str, Any], reason: str) -> Term:
    return Term(index, task, item["domain"], tuple(item["classes"]), None, reason)


def _mean(terms: Iterable[Term], cap: float = math.inf) -> float | None:
    values = [min(term.value, cap) for term in terms if term.value is not None]
    return sum(values) / len(values) if values else None


def _half_sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else (first + second) / 2
