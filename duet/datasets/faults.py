"""What can be wrong with a data set: reading refuses the first error, `duet data check` lists everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from duet.errors import InputError


class Level(str, Enum):
    """How bad a fault is: training refuses an error, suffers from a warning, and does not mind a note."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        level: how bad it is.
        where: file, and line where there is one.
        what: what stands there and what was expected.
    """

    level: Level
    where: str
    what: str

    @property
    def sentence(self) -> str:
        """The words of a refusal."""
        return f"{self.where}: {self.what}"


Report = Callable[[Fault], None]


def refuse(fault: Fault) -> None:
    """The report of a strict reading.

    Raises:
        InputError: when the fault is an error; warnings and notes pass.
    """
    if fault.level is Level.ERROR:
        raise InputError(fault.sentence)


class FaultList:
    """The report of a check: every different fault once, in the order in which they were found."""

    def __init__(self) -> None:
        self._faults: dict[Fault, None] = {}

    def __call__(self, fault: Fault) -> None:
        """Add a fault."""
        self._faults.setdefault(fault)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What was found."""
        return tuple(self._faults)


def no_box_of(classes: Sequence[str]) -> str:
    """The words that refuse a task of whose classes nothing is labelled."""
    return f"its training split has no box of the classes {', '.join(classes)}"


def not_of_the_task(label: str, classes: Sequence[str]) -> str:
    """The words that refuse a label of another class in a task's training images."""
    names = ", ".join(classes)
    return f"class '{label}' is not among the task's classes ({names}); other_labels: drop in the series leaves it out"
