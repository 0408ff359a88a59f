"""Tasks, series and evaluation slices of dual incremental object detection (DuET, sections 3 and Table S1).

A series is an ordered list of tasks; task t teaches the classes C_t in the domain D_t. A slice D[C] is the test
split of domain D scored on the classes C only. Class names are the key everywhere: an index into a detector's
outputs or into a label file never leaves the module that reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Role(str, Enum):
    """What a slice tells about a detector after task t (Table S1)."""

    NEW = "new"
    OLD = "old"
    UNSEEN = "unseen"
    EXTRA = "extra"  # a domain that no task uses; it enters no index


@dataclass(frozen=True)
class Slice:
    """The test split of one domain, scored on some classes.

    Args:
        domain: name of the domain.
        classes: class names, in the order of the series; not empty, without duplicates.

    Raises:
        ValueError: when there is no class or one is named twice.
    """

    domain: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError(f"slice of domain '{self.domain}': expected at least one class")
        _refuse_duplicates(self.classes, f"slice of domain '{self.domain}'")

    @property
    def label(self) -> str:
        """Short text such as ``night[3 4 5]`` or ``voc[bicycle … sheep, 10 classes]``."""
        names = " ".join(self.classes)
        if len(names) > 24:
            names = f"{self.classes[0]} … {self.classes[-1]}, {len(self.classes)} classes"
        return f"{self.domain}[{names}]"


@dataclass(frozen=True)
class RoleSlice:
    """A slice and the role it plays after one task."""

    role: Role
    slice: Slice


@dataclass(frozen=True)
class Task:
    """The classes that are learned in one domain.

    Args:
        domain: name of the domain whose training images are used.
        classes: names of the classes that are labelled in them.
        slices: overrides the slices that Table S1's rule would generate for this task; None keeps the rule.
    """

    domain: str
    classes: tuple[str, ...]
    slices: tuple[RoleSlice, ...] | None = None

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError(f"task in domain '{self.domain}': expected at least one class, none is given")
        _refuse_duplicates(self.classes, f"task in domain '{self.domain}'")


@dataclass(frozen=True)
class Series:
    """An ordered list of tasks with disjoint classes and distinct domains (DuET, M1).

    Args:
        name: name of the series.
        tasks: the tasks in training order.
        evaluated_only: further domains, with the classes that are labelled in them.

    Raises:
        ValueError: when there is no task, two tasks share a class, or two tasks share a domain.
    """

    name: str
    tasks: tuple[Task, ...]
    evaluated_only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = field(init=False)
    domains: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"series '{self.name}': expected at least one task, none is given")
        owner: dict[str, int] = {}
        for number, task in enumerate(self.tasks, start=1):
            for name in task.classes:
                if name in owner:
                    raise ValueError(
                        f"series '{self.name}': class '{name}' is in task {owner[name]} and in task {number}; "
                        "the classes of two tasks must not overlap"
                    )
                owner[name] = number
        domains = [task.domain for task in self.tasks]
        _refuse_duplicates(domains, f"series '{self.name}', domains")
        object.__setattr__(self, "classes", tuple(owner))
        object.__setattr__(self, "domains", tuple(domains))
        for number in range(1, len(self.tasks) + 1):
            self._refuse_unknown(number)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def test_domains(self) -> tuple[str, ...]:
        """Every domain that is evaluated: those of the tasks, then those that are only evaluated."""
        return (*self.domains, *self.evaluated_only)

    def classes_until(self, number: int) -> tuple[str, ...]:
        """Class names of tasks 1 to ``number`` (1-based), in the order in which they were learned."""
        return tuple(name for task in self.tasks[:number] for name in task.classes)

    def slices(self, number: int) -> tuple[RoleSlice, ...]:
        """The slices that are scored after task ``number`` (1-based): new, then old, then unseen.

        Without an override this is Table S1's rule, which its four experiments follow: new is D_t[C_t]; old is
        D_i[C_i] for every i < t; unseen, from t = 2 on, is D_1[C_2] and D_i[C_1 … C_(i-1)] for 2 ≤ i ≤ t. A class
        that is learned later than task t is never scored. An extra slice follows for every domain that is only
        evaluated: its classes that were learned until task t; an override replaces these too.

        Raises:
            IndexError: when there is no such task.
        """
        if not 1 <= number <= len(self.tasks):
            raise IndexError(f"series '{self.name}' has tasks 1 to {len(self.tasks)}, not {number}")
        task = self.tasks[number - 1]
        return task.slices if task.slices is not None else self._rule(number)

    def unseen_slices(self) -> tuple[tuple[int, Slice], ...]:
        """Every (task number, unseen slice) pair, the terms of Avg GI (DuET, M18)."""
        return tuple(
            (number, item.slice)
            for number in range(2, len(self.tasks) + 1)
            for item in self.slices(number)
            if item.role is Role.UNSEEN
        )

    def grid(self) -> tuple[Slice, ...]:
        """The whole class × domain grid: every task's classes in every task's domain, domains first."""
        return tuple(Slice(domain, task.classes) for domain in self.domains for task in self.tasks)

    def _rule(self, number: int) -> tuple[RoleSlice, ...]:
        tasks = self.tasks[:number]
        new = RoleSlice(Role.NEW, Slice(tasks[-1].domain, tasks[-1].classes))
        old = [RoleSlice(Role.OLD, Slice(task.domain, task.classes)) for task in tasks[:-1]]
        unseen: list[RoleSlice] = []
        if number >= 2:
            unseen.append(RoleSlice(Role.UNSEEN, Slice(tasks[0].domain, tasks[1].classes)))
            unseen += [
                RoleSlice(Role.UNSEEN, Slice(task.domain, self.classes_until(position)))
                for position, task in enumerate(tasks[1:], start=1)
            ]
        return (new, *old, *unseen, *self._extra(number))

    def _extra(self, number: int) -> list[RoleSlice]:
        learned = {
            domain: tuple(name for name in self.classes_until(number) if name in labelled)
            for domain, labelled in self.evaluated_only.items()
        }
        return [RoleSlice(Role.EXTRA, Slice(domain, classes)) for domain, classes in learned.items() if classes]

    def _refuse_unknown(self, number: int) -> None:
        for item in self.slices(number):
            where = f"series '{self.name}', task {number}, slice {item.slice.label}"
            if item.slice.domain not in self.test_domains:
                raise ValueError(f"{where}: expected a domain of {list(self.test_domains)}")
            unknown = [name for name in item.slice.classes if name not in self.classes]
            if unknown:
                raise ValueError(f"{where}: class '{unknown[0]}' is in no task of the series")


def slices_of(items: Iterable[RoleSlice], role: Role) -> tuple[Slice, ...]:
    """The slices that have one role, in their order."""
    return tuple(item.slice for item in items if item.role is role)


def _refuse_duplicates(names: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{where}: '{name}' is named twice")
        seen.add(name)
