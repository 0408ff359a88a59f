"""The error that the command line shows as one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something that the user gave is wrong; the message says what, where, and what was expected."""


class TrainingStopped(RuntimeError):
    """A training or a merge that went wrong by its numbers.

    Args:
        what: what went wrong, a part of a sentence.
        option: an option of ``--set`` that may help.
    """

    def __init__(self, what: str, option: str) -> None:
        super().__init__(what)
        self.option = option

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.option)  # it travels between processes


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind when it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a refusal: `` (did you mean 'epochs'?)``, or the list of what is known.

    Args:
        name: what the user wrote.
        known: the names that would have been accepted.
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"
